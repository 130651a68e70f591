"""Define the groups of settings of a run, typed and described; run_config.py puts them together."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

# What constructed rows are divided by: the number of original rows, or their own (batch.compute_loss_coefficients).
Weighting = Literal["rows", "terms"]


class Section(BaseModel):
    """A group of settings: frozen, and closed to unknown keys."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, populate_by_name=True, protected_namespaces=(), allow_inf_nan=False
    )


class ArithmeticConfig(Section):
    """The generated task (nemo_tapo/tasks/arithmetic.py)."""

    min_operations: int = Field(2, ge=1, description="shortest training chain")
    max_operations: int = Field(4, ge=1, description="longest training chain")
    train_queries: int = Field(4096, gt=0, description="size of the training set")
    held_out_queries: int = Field(256, gt=0, le=1000, description="test problems, never in any training data")


class CountdownConfig(Section):
    """Countdown (nemo_tapo/tasks/countdown.py), drawn by the package reasoning-gym."""

    numbers: int = Field(3, ge=2, le=6, description="numbers of a problem, each to be used once")
    min_value: int = Field(2, ge=1, description="smallest number")
    max_value: int = Field(15, ge=1, le=99, description="largest number")
    min_target: int = Field(10, ge=1, description="smallest target")
    max_target: int = Field(99, ge=1, le=99, description="largest target")
    operators: str = Field("+-*", pattern=r"^[-+*]+$", description="of + - *, that problems are made with")
    train_queries: int = Field(
        2048, gt=0, le=1_000_000, description="drawn for training, before equal ones are set aside"
    )
    held_out_queries: int = Field(256, gt=0, description="test problems, the same for every seed, in no training data")

    @model_validator(mode="after")
    def _ordered(self) -> CountdownConfig:
        if self.min_value > self.max_value or self.min_target > self.max_target:
            raise ValueError("a smallest number or target is above the largest.")
        return self


class DatasetConfig(Section):
    """Rows of a local file or of a Hugging Face data set, and the names of its fields."""

    path: Path | None = Field(None, description="a JSONL, JSON or Parquet file of this machine, .gz or not")
    hub: str | None = Field(None, description="a Hugging Face data set, owner/name; or a local copy of its repository")
    revision: str | None = Field(None, description="commit of `hub`: with a branch the rows may change under a run")
    configs: tuple[str, ...] = Field((), description="configurations of `hub`, one after the other; none: its only one")
    split: str = Field("train", description="split of `hub`")
    question: str = Field("problem", description="field of the problem's text")
    answer: str = Field("answer", description="field of the gold answer")
    answer_after: str | None = Field(None, description="the answer is what follows the last of these: '####' of GSM8K")
    solution: str | None = Field(None, description="field of a right solution written out (opsd.privileged: solution)")
    uid: str | None = Field(None, description="field of the row's name; null: its number")
    rows: int | None = Field(None, gt=0, description="rows the data set must have; another count is an error")
    licence: str | None = Field(None, description="as the publisher states it; shown when the data is read")

    @model_validator(mode="after")
    def _one_source(self) -> DatasetConfig:
        if self.path is not None and self.hub is not None:
            raise ValueError("path and hub are both given; set the one that is not meant to null.")
        if self.path is None and self.hub is None:
            raise ValueError("no data: set path to a file or hub to a Hugging Face data set.")
        return self


class VerifierConfig(Section):
    """Grading of mathematical answers in processes that can be killed."""

    workers: int = Field(2, ge=1, description="processes")
    deadline: float = Field(2.0, gt=0, le=2, description="seconds one answer may take before it counts as timeout")
    cache: int = Field(100_000, ge=0, description="(gold, answer) verdicts kept in memory")


class MathematicsConfig(Section):
    """Problems with a checkable final answer, read from data sets (nemo_tapo/tasks/mathematics.py)."""

    train: DatasetConfig | None = Field(None, description="training queries")
    benchmarks: dict[str, DatasetConfig] = Field(default_factory=dict, description="evaluation sets by name")
    prompt: str = Field(
        "{question}\n\nPlease reason step by step, and put your final answer within \\boxed{}.",
        description="what the user says; {question} is the only field, other braces are text",
    )
    exclude_benchmarks: bool = Field(False, description="set training queries aside that also stand in a benchmark")
    verifier: VerifierConfig = VerifierConfig()

    @model_validator(mode="after")
    def _prompt_asks(self) -> MathematicsConfig:
        if "{question}" not in self.prompt:
            raise ValueError("prompt has no {question}: every query would be the same.")
        if "train" in self.benchmarks:
            raise ValueError("a benchmark cannot be called train.")
        return self


class ReasoningGymConfig(Section):
    """A data set of the package reasoning-gym (nemo_tapo/tasks/reasoning_gym_task.py)."""

    dataset: str = Field("chain_sum", description="its name there")
    settings: dict[str, Any] = Field(default_factory=dict, description="settings of the data set, by name")
    train_queries: int = Field(
        4096, gt=0, le=1_000_000, description="drawn for training, before equal ones are set aside"
    )
    held_out_queries: int = Field(256, gt=0, description="test problems, the same for every seed, in no training data")
    prompt: str = Field(
        "{question}\n\nPlease reason step by step, and put your final answer within \\boxed{}.",
        description="as task.mathematics.prompt; what is in the box is scored",
    )


class EndpointConfig(Section):
    """A model behind an OpenAI-compatible server (`/v1/chat/completions`)."""

    url: str | None = Field(None, description="base, as http://127.0.0.1:8000/v1")
    model: str | None = Field(None, description="the name under which the server serves it; null: its only one")
    key_env: str | None = Field(None, description="environment variable with the key; null: the server wants none")
    concurrency: int = Field(32, ge=1, description="requests in flight")
    timeout: float = Field(300, gt=0, description="seconds of one attempt")
    attempts: int = Field(6, ge=1, description="of one request, with growing pauses, before it is given up")
    pause: float = Field(1.0, gt=0, description="seconds before the second attempt; doubles with every further one")
    extra_body: dict[str, Any] = Field(
        default_factory=dict, description="fields of every request's body, over our own; null leaves a field out"
    )


class JudgeRewardConfig(Section):
    """A served model that scores responses (tasks/judge_reward.py)."""

    endpoint: EndpointConfig = EndpointConfig()
    rubric: str = Field("Is the final answer right, and does every step follow?", description="what the score is for")
    prompt: str | None = Field(
        None,
        description="with {question}, {answer}, {rubric}, {response}, {best}; null: judge_reward.py has it",
    )
    best: int = Field(10, ge=1, description="the judge gives a score from 0 to this; the reward is its share")
    temperature: float = Field(0.0, ge=0, description="of the first try; further ones sample at 0.6 or more")
    max_tokens: int = Field(2048, gt=0, description="of a reply, its reasoning included")
    tries: int = Field(3, ge=1, description="replies asked for before a response counts as no_reward_not_a_number")
    cache: Path = Field(Path("runs/judge-cache"), description="replies by content, shared by all runs")

    @model_validator(mode="after")
    def _prompt_shows(self) -> JudgeRewardConfig:
        if self.prompt is not None and "{response}" not in self.prompt:
            raise ValueError("prompt has no {response}: the judge would not see what it scores.")
        return self


class CodeRewardConfig(Section):
    """Answers that are programs, run against tests in a sandbox (grading/code_tests.py)."""

    tests: str | None = Field(None, description="field of the row with the tests; null: the answer is the tests")
    entry_point: str | None = Field(
        None, description="field with the name of the function that `check` of the tests is called with (HumanEval)"
    )
    share: bool = Field(False, description="the reward is the share of the tests that are passed, not all or nothing")
    seconds: int = Field(4, ge=1, description="processor time of one case; of all `assert` tests together")
    answer_seconds: float = Field(60.0, gt=0, description="after so long, the answer's cases that are left are late")
    memory_mib: int = Field(512, ge=64, description="address space of the program")
    isolation: Literal["bubblewrap", "limits"] = Field(
        "bubblewrap",
        description="limits: without namespaces. The program can read what the user can, so only on a machine without "
        "secrets (docs/security.md)",
    )


class RewardConfig(Section):
    """One of several rewards (tasks/rewarded_task.py)."""

    target: str | None = Field(
        None, description="as task.reward; null: the judge or the tests, else the task's own verdict"
    )
    judge: JudgeRewardConfig | None = Field(None, description="a served model instead of a function")
    code: CodeRewardConfig | None = Field(None, description="tests that the response's program has to pass")
    weight: float = Field(1.0, gt=0, description="in the weighted mean of all; the weights need not sum up to 1")

    @model_validator(mode="after")
    def _one_source(self) -> RewardConfig:
        given = [name for name in ("target", "judge", "code") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} are both given; make two rewards of them.")
        return self

    @property
    def own(self) -> bool:
        """True for the task's own verdict."""
        return self.target is None and self.judge is None and self.code is None


class GradingConfig(Section):
    """Processes that can be killed, for reward functions and for the `grade` of a custom task (docs/tasks.md)."""

    workers: int = Field(2, ge=1, description="processes")
    deadline: float = Field(5.0, gt=0, description="seconds that one response may take, else no_reward_timeout")


class TaskConfig(Section):
    """Where queries come from and how responses are graded."""

    name: Literal["arithmetic", "countdown", "mathematics", "reasoning_gym", "custom", "nemo_rl"] = Field(
        "arithmetic",
        description="custom: the class of `target`; nemo_rl: NeMo-RL's own `data` and `env` sections, with its runtime "
        "only",
    )
    arithmetic: ArithmeticConfig = ArithmeticConfig()
    countdown: CountdownConfig = CountdownConfig()
    mathematics: MathematicsConfig = MathematicsConfig()
    reasoning_gym: ReasoningGymConfig = ReasoningGymConfig()
    target: str | None = Field(None, description="of a custom task: path/to/file.py:Class or package.module:Class")
    arguments: dict[str, Any] = Field(default_factory=dict, description="what that class is called with, by name")
    reward: str | None = Field(
        None,
        description="f(response, query) -> number from 0 to 1, or Grade, instead of the task's own verdict: "
        "path/to/file.py:function or package.module:function",
    )
    rewards: dict[str, RewardConfig] = Field(
        default_factory=dict, description="several rewards by name, instead of `reward`: their weighted mean counts"
    )
    grading: GradingConfig = GradingConfig()

    @model_validator(mode="after")
    def _consistent(self) -> TaskConfig:
        if self.name == "custom" and self.target is None:
            raise ValueError(
                "name = custom needs a class: set target to path/to/file.py:Class or package.module:Class."
            )
        if self.name != "custom" and (self.target is not None or self.arguments):
            raise ValueError(f"target and arguments are of a custom task, but name = {self.name}: set name to custom.")
        if self.reward is not None and self.rewards:
            raise ValueError("reward and rewards are both set; move the one into the other.")
        return self

    @property
    def all_rewards(self) -> dict[str, RewardConfig]:
        """The rewards that replace the task's own verdict, by name; empty if none does."""
        return {"reward": RewardConfig(target=self.reward)} if self.reward is not None else dict(self.rewards)

    @property
    def own_verdict(self) -> bool:
        """True if the task's own verdict is asked for."""
        rewards = self.all_rewards.values()
        return not rewards or any(each.own for each in rewards)

    @property
    def grades_in_processes(self) -> bool:
        """True if the section `grading` is used."""
        return self.name == "reasoning_gym" or bool(self.targets) or bool(self.rewards)

    @property
    def targets(self) -> dict[str, str]:
        """Every function and class of the user that decides the run, by its config key."""
        found = {"task.target": self.target, "task.reward": self.reward}
        found |= {f"task.rewards.{name}.target": each.target for name, each in self.rewards.items()}
        return {key: target for key, target in found.items() if target is not None}


class ModelConfig(Section):
    """The policy."""

    path: Path = Field(
        Path("assets/tiny-base"), description="a Hugging Face directory of a Llama, Qwen2 or Qwen3 model"
    )
    max_length: int = Field(512, gt=1, description="longest row and longest synthesis prompt + answer, tokens")
    enable_thinking: bool = Field(False, description="passed to the chat template")


class RolloutConfig(Section):
    """Sampling of the K responses (Algorithm 1, lines 3 to 7)."""

    queries_per_step: int = Field(32, gt=0, description="P")
    samples_per_query: int = Field(8, gt=0, description="K")
    temperature: float = Field(1.0, gt=0)
    top_p: float = Field(1.0, gt=0, le=1)
    max_tokens: int = Field(96, gt=0, description="longest response")
    dynamic_sampling: float | None = Field(
        None,
        gt=1,
        description="a query whose rewards are all equal is replaced by the next one of the order, as long as the step "
        "has sampled no more than this times queries_per_step; null: it stays",
    )
    lag: int = Field(
        0,
        ge=0,
        le=1,
        description="1: a step is sampled while the policy trains on the step before, by the weights that it begins "
        "with (docs/method.md); 0: once the policy has been updated",
    )
    overlong: Literal["keep", "mask"] = Field(
        "keep", description="mask: a truncated rollout gives no training row; its reward stays in its group's mean"
    )
    logprobs: Literal["spot_check", "first_step", "always", "never"] = Field(
        "spot_check",
        description="of which rollouts the engine reports log-probabilities, to be compared with the actor's: all at a "
        "process's first step, and then a few at every step (spot_check), none (first_step) or all (always)",
    )


PrefixLoss = Literal["all", "none", "error_step_only", "turn_only"]


class TapoConfig(Section):
    """The method's own settings (section 3) and the ablation switches (Tables 3, 4, 5)."""

    n_pos: int = Field(2, ge=1, description="Eq. 3: fewest correct rollouts of an eligible query")
    n_neg: int = Field(4, ge=1, description="Eq. 3: fewest incorrect rollouts of an eligible query")
    correct_at: float | None = Field(
        None, gt=0, le=1, description="Eq. 3: least reward of a correct response, in evaluations too; null: any above 0"
    )
    m_max: int = Field(4, ge=1, description="most constructions a query")
    weight: float = Field(1.0, ge=0, alias="lambda", description="Eq. 6: weight of the reflection term")
    decoupled: bool = Field(True, description="Table 4: constructed trajectories form a group of their own")
    negatives: bool = Field(True, description="Table 4: keep constructed trajectories that are not correct")
    suppression: bool = Field(True, description="Table 4: OOD token suppression, Eq. 7")
    w_min: float = Field(0.01, ge=0, description="Eq. 7: smallest token weight")
    w_max: float = Field(10.0, gt=0, description="Eq. 7: largest token weight")
    prefix_loss: PrefixLoss = Field(
        "all",
        description="which tokens of the kept wrong prefix carry loss: all as Eq. 8, none, or those of its last step, "
        "where the error is; turn_only: none, and after it the step that turns alone; the other tokens keep their "
        "weight",
    )
    ift_weight: float = Field(
        0.0,
        ge=0,
        description="weight of a third loss term, the likelihood of the policy's own right answers to the synthesis "
        "prompt: keeps the skill of construction alive",
    )
    full_reconstruction: bool = Field(False, description="Table 3: ask for a whole new solution, anchor nothing")
    uniform_group: Literal["zero", "reward"] = Field(
        "zero", description="advantage of a reflection group of equal rewards: 0 as Eq. 5, or the reward"
    )
    reflection_baseline: Literal["constructed", "with_originals"] = Field(
        "constructed", description="whose rewards enter the reflection group's mean and deviation"
    )
    prompt: str | None = Field(
        None, description="synthesis prompt with {question}, {wrong}, {reference}; null: the task's own"
    )
    max_tokens: int = Field(192, gt=0, description="longest answer to the synthesis prompt")
    temperature: float = Field(1.0, gt=0, description="of the synthesis")
    leak_words: tuple[str, ...] = Field(
        ("reference", "correct solution"), description="a reconstruction with one of these is dropped as a leak"
    )
    min_kept_share: float = Field(0.0, ge=0, le=1, description="least share of the wrong response preserved")
    prefix: Literal["copied", "prefilled"] = Field(
        "copied",
        description="copied: the policy writes the wrong response again up to the error (the paper); prefilled: it "
        "names the wrong step, and the reconstruction begins with the wrong rollout's own tokens",
    )
    construction: Literal["synthesis", "continue_from_prefix"] = Field(
        "synthesis",
        alias="construct",
        description="synthesis: the policy corrects a wrong response when asked to (the paper); continue_from_prefix: "
        "it goes on from a prefix of its wrong response, which is context without loss (needs prefix_loss: none)",
    )
    continue_at: Literal["error", "half"] = Field(
        "error",
        description="where continue_from_prefix cuts: error: behind the first wrong step, as the task tells it; half: "
        "behind the last step from which half of four continuations are right",
    )
    keep_error: bool = Field(
        True,
        description="drop a construction that changes the wrong response before the end of its first wrong step, or "
        "keeps no whole step: its mistake would not be the policy's own",
    )


class OpsdConfig(Section):
    """On-policy self-distillation (arXiv 2601.18734): the policy, told a correct solution, teaches itself.

    The presets of examples/configs/opsd/ set all of it: opsd-v1, opsd-v3, opsd-sampled.
    """

    divergence: Literal["jsd", "sampled"] = Field(
        "jsd", description="jsd: generalised Jensen-Shannon over the vocabulary; sampled: of the sampled token alone"
    )
    beta: float = Field(0.0, ge=0, le=1, description="jsd: 0 is KL(teacher, student), 1 is KL(student, teacher)")
    entry_clip: float | None = Field(0.05, gt=0, description="jsd: most that one vocabulary entry adds; null: no bound")
    teacher: Literal["frozen", "live"] = Field(
        "frozen", description="frozen: the initial policy; live: the present one"
    )
    teacher_path: Path | None = Field(None, description="another frozen teacher: a model of the same architecture")
    privileged: Literal["rollout", "solution"] = Field(
        "rollout", description="what the teacher is told: a correct rollout of the same group, or the data's solution"
    )
    prompt: str | None = Field(
        None,
        description="teacher's prompt with {question}, {reference}; null: the wording of the OPSD authors' version 3",
    )

    @model_validator(mode="after")
    def _consistent(self) -> OpsdConfig:
        if self.prompt is not None and "{reference}" not in self.prompt:
            raise ValueError("prompt has no {reference}: the teacher would know no more than the student.")
        if self.teacher_path is not None and self.teacher == "live":
            raise ValueError("teacher_path names another model, teacher: live the present one; leave one of them out.")
        return self


class LossConfig(Section):
    """The clipped surrogate (Eq. 2, 6, 8)."""

    clip_low: float = Field(0.2, ge=0, le=1, description="ratio clipped below at 1 - clip_low")
    clip_high: float = Field(0.2, ge=0, description="ratio clipped above at 1 + clip_high")
    dual_clip: float | None = Field(
        None, gt=1, description="c: where the advantage A is negative the loss is at most -c A; null: no such bound"
    )
    ratio: Literal["token", "sequence"] = Field(
        "token", description="sequence: a row's geometric mean of its tokens' ratios (GSPO)"
    )
    surrogate: Literal["clipped", "cispo"] = Field(
        "clipped", description="clipped: Eq. 2; cispo: the clipped ratio, held constant, times log p"
    )
    token_mean: bool = Field(False, description="divide by numbers of tokens, not row by row")
    weighting: Weighting = Field(
        "rows", description="rows: a constructed row weighs lambda rollouts; terms: each term is a mean of its own rows"
    )
    kl_coef: float = Field(0.0, ge=0, description="weight of the KL to the reference policy (k3 estimate)")
    kl_rows: int = Field(64, ge=0, description="original rows on which KL is reported when it is not penalised")
    advantage_eps: float = Field(1e-6, ge=0, description="added to the deviation, Eq. 1")
    updates_per_batch: int = Field(1, ge=1, description="optimizer steps per batch of rollouts, each of whole queries")


class OptimizerConfig(Section):
    """AdamW (or Muon) and its schedule."""

    name: Literal["adamw", "muon"] = Field(
        "adamw", description="muon: the layers' matrices by torch.optim.Muon, the rest by AdamW; needs local.tp = 1"
    )
    muon_lr: float = Field(0.02, gt=0, description="of the matrices under muon; follows the same schedule")
    lr: float = Field(1e-6, gt=0)
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    clip_norm: float = Field(1.0, gt=0, description="global L2 norm")
    warmup_steps: int = Field(10, ge=0, description="counted in updates, as the cosine is")
    schedule: Literal["cosine", "constant"] = "cosine"
    min_lr_ratio: float = Field(0.0, ge=0, le=1, description="end of the cosine, as a share of lr")


class PretrainConfig(Section):
    """`nemo-tapo pretrain`: a tiny base from nothing (generated tasks only)."""

    steps: int = Field(3000, gt=0)
    examples_per_step: int = Field(64, gt=0)
    early_steps: int = Field(200, ge=0, description="first steps, mostly of repetition, from which copying is learned")
    mistake_rate: float = Field(
        0.7,
        ge=0,
        le=1,
        description="how often the corpus errs: a carry or borrow is forgotten, an attempt of Countdown misses",
    )
    hidden_size: int = 128
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    intermediate_size: int = 384
    optimizer: OptimizerConfig = OptimizerConfig(
        name="muon", lr=3e-3, betas=(0.9, 0.98), warmup_steps=30, weight_decay=0.01, min_lr_ratio=0.02
    )


class ColdStartConfig(Section):
    """Section 3.2: teach the synthesis prompt before RL."""

    queries: int | None = Field(1024, gt=0, description="queries sampled from the base, the first ones; null: all")
    samples_per_query: int = Field(8, gt=0)
    rounds: int = Field(
        1, ge=1, le=9, description="times it is run: each further one samples and corrects the model of the one before"
    )
    writer: Literal["model", "endpoint", "oracle"] = Field(
        "oracle", description="who writes the corrections: the model itself, another one, or a generated task's oracle"
    )
    endpoint: EndpointConfig = EndpointConfig()  # of the writer
    corrections_per_query: int = Field(1, gt=0, description="most wrong responses corrected; 1 in the paper")
    sft_examples: int = Field(1000, ge=0, description="query -> correct or corrective response, at most")
    correct_per_query: int = Field(1, gt=0, description="right responses of a query that may become SFT examples")
    corrective_share: float = Field(0.25, ge=0, le=1, description="of the SFT examples that are corrective")
    sampled_examples: int = Field(
        0,
        ge=0,
        description="query -> response as sampled, right or wrong, at most: what the policy writes stays",
    )
    ift_examples: int = Field(3000, ge=0, description="synthesis prompt -> analysis and reconstruction, at most")
    drop_duplicates: bool = Field(True, description="of examples with the same tokens keep one")
    max_length: int | None = Field(None, gt=1, description="longest example, tokens; null: model.max_length")
    parquet: bool = Field(False, description="write examples.parquet beside examples.jsonl")
    sft_recipe: Path | None = Field(
        None, description="on NeMo-RL: a recipe of its SFT, to be completed with the data into <output>/sft.yaml"
    )
    epochs: float = Field(3.0, gt=0)
    examples_per_step: int = Field(64, gt=0)
    optimizer: OptimizerConfig = OptimizerConfig(lr=5e-4, warmup_steps=50)


class EvaluationConfig(Section):
    """pass@k on the held-out problems, plain single-pass generation."""

    endpoint: EndpointConfig = EndpointConfig()  # with a url: the served model is evaluated, nothing is started here
    samples: int = Field(5, gt=0, description="n responses a problem and run")
    runs: int = Field(16, gt=0, description="independent runs with their own seeds, averaged")
    temperature: float = Field(0.6, gt=0)
    top_p: float = Field(0.9, gt=0, le=1)
    max_tokens: int = Field(96, gt=0)
    problems: int | None = Field(None, description="only the first so many; null: all")
    every: int | None = Field(
        None,
        ge=1,
        description="steps of RL between validations: a few samples of the held-out problems, at the rollouts' "
        "temperature and length; null: none",
    )
    validation_problems: int = Field(64, gt=0, description="of each held-out set, the first so many")
    validation_samples: int = Field(1, gt=0, description="responses a problem")
    synthesis_queries: int | None = Field(
        None,
        ge=0,
        description="held-out queries on which synthesis is measured, K each; null: 64 for TAPO on the generated task, "
        "else none. Not measured through an endpoint",
    )


class DiagnoseConfig(Section):
    """`nemo-tapo diagnose`: whether TAPO is likely to help a model."""

    queries: int = Field(64, gt=0, description="training queries, the first so many; rollout.samples_per_query each")
    turn: str = Field("Wait", min_length=1, description="what a step that takes something back begins with")


class FilterConfig(Section):
    """`nemo-tapo filter`: which queries are neither too easy nor too hard for the model."""

    samples: int = Field(8, gt=0, description="responses a query")
    min_accuracy: float = Field(0.125, ge=0, le=1, description="kept from here on")
    max_accuracy: float = Field(0.875, ge=0, le=1, description="kept up to here")
    temperature: float = Field(1.0, gt=0)
    top_p: float = Field(1.0, gt=0, le=1)
    max_tokens: int | None = Field(None, gt=0, description="of a response; null: rollout.max_tokens")
    keep_responses: bool = Field(False, description="also keep the responses' text, in samples/")


class JudgeConfig(Section):
    """DSR and ERR (section 4.3): a stronger model classifies responses."""

    endpoint: EndpointConfig = EndpointConfig()
    cache: Path = Field(Path("runs/judge-cache"), description="verdicts by content, shared by all runs")
    temperature: float = Field(0.0, ge=0, description="of the first try; further ones sample at 0.6 or more")
    max_tokens: int = Field(2048, gt=0, description="of a verdict, its reasoning included")
    tries: int = Field(3, ge=1, description="answers asked for before a response counts as unparsable")


class LocalConfig(Section):
    """Ray, Megatron-core over gloo and vLLM on this machine's CPU."""

    tp: int = Field(1, ge=1, description="tensor parallel ranks")
    pp: int = Field(1, ge=1, description="pipeline parallel ranks")
    dp: int = Field(1, ge=1, description="data parallel ranks")
    threads: int = Field(2, ge=1, description="torch threads, divided over the ranks; also of the engine")
    micro_batch_tokens: int = Field(2048, gt=0, description="padded tokens of one micro-batch, at most")
    logprob_chunk: int = Field(1024, gt=0, description="tokens of one chunk of the log-probability pass")
    kv_cache_gib: int = Field(1, ge=1)
    max_num_seqs: int = Field(256, ge=1, description="requests the engine runs at once")
    start_timeout: float = Field(300, gt=0, description="seconds an engine or actor may take to start")
    call_timeout: float = Field(600, gt=0, description="seconds a single call may take before it counts as hung")


class WandbConfig(Section):
    """Weights & Biases."""

    project: str = "nemo-tapo"
    name: str | None = Field(None, description="of the run; null: the output folder's")
    entity: str | None = Field(None, description="a team; null: W&B's default")


class SwanlabConfig(Section):
    """SwanLab."""

    project: str = "nemo-tapo"
    name: str | None = Field(None, description="of the run; null: the output folder's")


class MlflowConfig(Section):
    """MLflow."""

    experiment_name: str = "nemo-tapo"
    run_name: str | None = Field(None, description="null: the output folder's name")
    tracking_uri: str | None = Field(None, description="null: MLFLOW_TRACKING_URI, else MLflow's default")


class LoggerConfig(Section):
    """Where the numbers of RL go beside metrics.jsonl, by NeMo-RL's keys (tracking/trackers.py)."""

    tensorboard_enabled: bool = Field(True, description="event files in <output>/tensorboard")
    wandb_enabled: bool = False
    swanlab_enabled: bool = False
    mlflow_enabled: bool = False
    wandb: WandbConfig = WandbConfig()
    swanlab: SwanlabConfig = SwanlabConfig()
    mlflow: MlflowConfig = MlflowConfig()


class CheckpointConfig(Section):
    """When state is written and how much is kept."""

    every: int = Field(20, ge=1, description="steps between checkpoints")
    keep: int = Field(2, ge=1, description="newest checkpoints kept")
    keep_best: bool = Field(
        False, description="also save and keep the checkpoint with the best validation accuracy (evaluation.every)"
    )
    min_free_gib: float = Field(0.5, ge=0, description="a run refuses to start with less free disk")
