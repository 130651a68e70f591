"""Draw the picture of the pipeline at the head of README, as an SVG that is legible on light and on dark pages."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 1000, 446
FONT = "ui-sans-serif, system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif"
MONO = "ui-monospace, SFMono-Regular, Menlo, Consolas, monospace"

# The picture has a background of its own, so that text is legible whatever the page's colour is.
STYLE = f"""
  svg {{ color-scheme: light dark; }}
  .ground {{ fill: #ffffff; stroke: #d0d7de; }}
  .box {{ fill: #f6f8fa; stroke: #8c959f; }}
  .grpo {{ fill: #ddf4ff; stroke: #0969da; }}
  .tapo {{ fill: #fff1e5; stroke: #bc4c00; }}
  text {{ font-family: {FONT}; font-size: 14px; fill: #1f2328; }}
  .title {{ font-weight: 600; }}
  .small {{ font-size: 12px; fill: #59636e; }}
  .code {{ font-family: {MONO}; font-size: 12px; }}
  .kept {{ fill: #59636e; }} .turn {{ fill: #9a6700; font-weight: 600; }} .fixed {{ fill: #1a7f37; }}
  .bad {{ fill: #cf222e; }}
  .line {{ fill: none; stroke: #59636e; stroke-width: 1.6; marker-end: url(#head); }}
  .tip {{ fill: #59636e; }}
  @media (prefers-color-scheme: dark) {{
    .ground {{ fill: #0d1117; stroke: #3d444d; }}
    .box {{ fill: #151b23; stroke: #656c76; }}
    .grpo {{ fill: #121d2f; stroke: #4493f8; }}
    .tapo {{ fill: #221a0f; stroke: #f0883e; }}
    text {{ fill: #f0f6fc; }}
    .small, .kept {{ fill: #9198a1; }} .turn {{ fill: #d29922; }} .fixed {{ fill: #3fb950; }} .bad {{ fill: #f85149; }}
    .line {{ stroke: #9198a1; }} .tip {{ fill: #9198a1; }}
  }}
"""


@dataclass(frozen=True)
class Box:
    """A labelled box: a title and smaller lines below it. Positions in pixels."""

    x: int
    y: int
    width: int
    height: int
    title: str
    lines: tuple[str, ...] = ()
    kind: str = "box"

    def draw(self) -> str:
        """Return the box as SVG."""
        middle = self.x + self.width // 2
        top = self.y + self.height // 2 + 5 - 8 * len(self.lines)
        texts = [_text(middle, top, self.title, "title", "middle")]
        texts += [_text(middle, top + 17 * (i + 1), line, "small", "middle") for i, line in enumerate(self.lines)]
        shape = (
            f'<rect class="{self.kind}" x="{self.x}" y="{self.y}" width="{self.width}" height="{self.height}" rx="8"/>'
        )
        return "\n".join([shape, *texts])


def _text(x: int, y: int, text: str, style: str = "", anchor: str = "start") -> str:
    return f'<text x="{x}" y="{y}" class="{style}" text-anchor="{anchor}">{escape(text)}</text>'


def _arrow(*points: tuple[int, int]) -> str:
    return f'<path class="line" d="M{" L".join(f"{x},{y}" for x, y in points)}"/>'


BOXES = (
    Box(24, 64, 130, 64, "query", ("P a step",)),
    Box(198, 64, 168, 64, "K rollouts, graded", ("vLLM, the task's verifier",), "grpo"),
    Box(560, 64, 190, 64, "group advantages", ("rollouts: Eq. 1, 4",), "grpo"),
    Box(198, 188, 168, 64, "pairs", ("wrong + right: Eq. 3",), "tapo"),
    Box(388, 188, 150, 64, "synthesis", ("by the policy itself",), "tapo"),
    Box(560, 188, 190, 64, "reflection group", ("own advantages: Eq. 5",), "tapo"),
    Box(
        804,
        64,
        172,
        188,
        "loss and update",
        ("Eq. 2: clipped surrogate", "Eq. 7: token weights", "Eq. 6: both terms", "Megatron-core"),
    ),
)

ARROWS = (
    ((154, 96), (194, 96)),
    ((366, 96), (556, 96)),
    ((282, 128), (282, 184)),
    ((366, 220), (384, 220)),
    ((538, 220), (556, 220)),
    ((750, 96), (800, 96)),
    ((750, 220), (800, 220)),
    ((890, 64), (890, 36), (282, 36), (282, 60)),
)


def draw_pipeline() -> str:
    """Return docs/pipeline.svg: one step of TAPO, and a wrong response on its way to a training row."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-labelledby="title">',
        '<title id="title">One step of TAPO: rollouts, pairs, synthesis, two groups of advantages, one update</title>',
        f"<style>{STYLE}</style>",
        '<defs><marker id="head" viewBox="0 0 10 10" refX="8" refY="5" markerWidth="7" markerHeight="7" orient="auto">'
        '<path class="tip" d="M0,0 L10,5 L0,10 z"/></marker></defs>',
        f'<rect class="ground" x="0.5" y="0.5" width="{WIDTH - 1}" height="{HEIGHT - 1}" rx="10"/>',
        *(box.draw() for box in BOXES),
        *(_arrow(*points) for points in ARROWS),
        _text(586, 30, "new weights to the engine", "small", "middle"),
        _text(462, 88, "GRPO", "small", "middle"),
        _text(294, 160, "TAPO: where a query is sometimes right, sometimes wrong", "small"),
        *_example(),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _example() -> list[str]:
    """Return the worked example of nemo_tapo/types.py, as three lines of text below the boxes."""
    rows = (
        (304, "a wrong rollout", (("47+38=75 \\boxed{75}", "bad"),)),
        (334, "a right one, as its guide", (("47+38=85 \\boxed{85}", "fixed"),)),
        (
            364,
            "the constructed row",
            (
                ("47+38=75", "kept"),
                ("Wait, the carry was forgotten:", "turn"),
                ("47+38=85 \\boxed{85}", "fixed"),
            ),
        ),
    )
    parts = ['<line x1="24" y1="276" x2="976" y2="276" class="box" stroke-dasharray="3 5"/>']
    for y, label, pieces in rows:
        spans = " ".join(f'<tspan class="{style}">{escape(text)}</tspan>' for text, style in pieces)
        parts += [
            _text(24, y, label, "small"),
            f'<text x="198" y="{y}" class="code" xml:space="preserve">{spans}</text>',
        ]
    legend = (
        ("kept: the policy's own token ids, up to the first error", "kept"),
        ("turn", "turn"),
        ("correction", "fixed"),
    )
    spans = "   ".join(f'<tspan class="{style}">{escape(text)}</tspan>' for text, style in legend)
    parts.append(f'<text x="198" y="392" class="small" xml:space="preserve">{spans}</text>')
    parts.append(_text(24, 424, "The row answers the query itself; the synthesis prompt is not part of it.", "small"))
    return parts
