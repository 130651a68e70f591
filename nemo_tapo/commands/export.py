"""The command `export`: a finished run's model as a folder, and on request in a Hub repository."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from nemo_tapo.utils.errors import RuntimeFailure


def add_arguments(sub: argparse.ArgumentParser) -> None:
    """Add the arguments of `export`."""
    sub.add_argument("folder", type=Path, help="the output folder of a finished run")
    sub.add_argument("--to", type=Path, required=True, help="a new folder for model, tokenizer and model card")
    sub.add_argument("--push", metavar="OWNER/NAME", help="upload it to this repository of the Hugging Face Hub")
    sub.add_argument("--public", action="store_true", help="with --push: a new repository is public, not private")
    sub.add_argument("--base", help="the base model's name in the card, as owner/name")
    sub.add_argument("--licence", help="the base model's licence in the card, as the Hub abbreviates it: apache-2.0")


def run_export(arguments: argparse.Namespace) -> int:
    """Write the folder, push it if asked, and return 0."""
    from nemo_tapo.stages.export_model import export_model

    if arguments.push and arguments.push.count("/") != 1:
        raise ValueError(f"--push {arguments.push}: a repository is named owner/name.")
    print(export_model(arguments.folder, arguments.to, arguments.base, arguments.licence), flush=True)
    if arguments.push:
        print(f"pushed to {push_folder(arguments.to, arguments.push, private=not arguments.public)}")
    return 0


def push_folder(folder: Path, name: str, private: bool) -> str:
    """Upload a folder as one commit to the Hub repository `name` and return the commit's address.

    The repository is made if it is not there. The server is $HF_ENDPOINT or huggingface.co, the token that of
    `hf auth login` or $HF_TOKEN. Raises ValueError without the library or offline, RuntimeFailure if the server
    refuses.
    """
    try:
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
    except ImportError:
        raise ValueError("--push needs huggingface_hub: pip install huggingface_hub") from None
    import httpx

    kept = f"The model is in {folder}."
    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
    try:
        api.create_repo(name, private=private, exist_ok=True)
        commit = api.upload_folder(repo_id=name, folder_path=folder, commit_message="Add the model of a nemo_tapo run")
    except OfflineModeIsEnabled:
        raise ValueError(f"--push: HF_HUB_OFFLINE is set. {kept}") from None
    except HfHubHTTPError as error:
        raise _fail(f"the Hub refused {name}: {str(error).strip()}", kept) from None
    except httpx.HTTPError as error:
        raise _fail(f"the Hub did not answer: {error!r}", kept) from None
    return str(commit.commit_url)


def _fail(sentence: str, kept: str) -> RuntimeFailure:
    failure = RuntimeFailure(sentence)
    failure.kept = kept
    return failure
