"""Publishes a finished run on the Hugging Face Hub."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi, ModelCard, get_token
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    HTTPError,  # of the HTTP library that huggingface_hub uses
    OfflineModeIsEnabled,
)

from hf_effpt.core.errors import EffptError
from hf_effpt.core.files import read_json

from .card import card_of, model_card
from .card_settings import CardSettings
from .folders import check_whole, files_of
from .private import scrubbed_file


def push(
    folder: str | os.PathLike,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    token: str | None = None,
    card: Mapping[str, Any] | None = None,
    message: str = "Upload model",
) -> str:
    """Uploads the exported model at the root of a run folder, with tokenizer, card and run record, in one commit.

    Nothing else in the folder is uploaded, so no checkpoints or optimizer states ([`files_to_push`]). Records go
    without tokens and absolute paths. A card that nobody has edited since the run wrote it is published with `repo_id`
    filled in.

    Args:
        folder (`str` or `os.PathLike`): the folder of a finished run, or one written by `export`.
        repo_id (`str`): `ORG/NAME`; the repository is created if needed.
        private (`bool`, *optional*): if `True`, the repository has to be private, and a new one will be; by default
            the namespace decides.
        revision (`str`, *optional*, defaults to `"main"`): branch to commit to, created if needed.
        token (`str`, *optional*): a token with write access; by default the one of `hf auth login` or `HF_TOKEN`.
        card (`Mapping[str, Any]`, *optional*): metadata of the card, in place of that of the run, by the names of
            [`CardSettings`]: `{"license": "apache-2.0", "language": ["en"]}`.
        message (`str`, *optional*, defaults to `"Upload model"`): message of the commit.

    Returns:
        `str`: the address of the commit.

    Raises:
        EffptError: if the folder holds no exported model, a file of it lies elsewhere, `card` is wrong, the repository
            is public and must not be, or the Hub cannot be reached or refuses.
    """
    folder, given = Path(folder), CardSettings.of(card or {})
    names = files_to_push(folder)
    token = token or get_token()
    if token is None:
        raise EffptError("No token for the Hugging Face Hub: run `hf auth login`, or set HF_TOKEN, and push again.")
    api = HfApi(token=token)
    run = read_json(folder / "run.json")
    # A card that somebody has edited is published as it is.
    if card_of(folder, run)[0]:
        text = str(model_card(run | {"card": {**run.get("card", {}), **given.facts()}}, repo_id))
    else:
        edited = ModelCard((folder / "README.md").read_text(encoding="utf-8"))
        vars(edited.data).update(given.metadata())
        text = str(edited)
    operations = [CommitOperationAdd(name, scrubbed_file(folder / name) or folder / name) for name in names]
    operations.append(CommitOperationAdd("README.md", text.encode()))
    try:
        created = api.create_repo(repo_id, private=private, exist_ok=True)
        if private and not api.model_info(created.repo_id).private:
            raise EffptError(
                f"`{created.repo_id}` is a public repository, and nothing was uploaded: make it private in its "
                "settings on the Hub, name another, or leave `private` out."
            )
        if revision and revision != "main" and not revision.startswith("refs/"):
            api.create_branch(created.repo_id, branch=revision, exist_ok=True)
        commit = api.create_commit(created.repo_id, operations, commit_message=message, revision=revision)
        return commit.commit_url
    except HFValidationError as error:
        raise EffptError(f"{repo_id!r} is not a name the Hub accepts, such as `ORG/NAME`: {error}") from error
    except HfHubHTTPError as error:
        raise EffptError(_refusal(error, repo_id, api.endpoint)) from error
    except (HTTPError, OfflineModeIsEnabled) as error:
        raise EffptError(
            f"{api.endpoint} cannot be reached ({error}). Check the network and proxy, that HF_ENDPOINT (if set) is "
            f"right, and that HF_HUB_OFFLINE is not set; then push again. {str(folder)!r} is complete and unchanged."
        ) from error


def files_to_push(folder: Path) -> list[str]:
    """Names of the files of an exported model that [`push`] uploads beside the card.

    Raises `EffptError` if there is no exported model, or one of its files is a link to a place outside the folder.
    """
    _check_exported(folder)
    names = [name for name in files_of(folder) if name != "README.md"]
    for name in names:
        if not (folder / name).resolve().is_relative_to(folder.resolve()):
            raise EffptError(
                f"{str(folder / name)!r} is a link to {str((folder / name).resolve())!r}, outside the folder, and is "
                "not uploaded; copy the file here if it is meant to be public."
            )
    return names


def _check_exported(folder: Path) -> None:
    check_whole(
        folder,
        near="the run has not ended: go on with it (`--resume`), or push what `effpt export {} --out DIR` makes of it",
        otherwise="pass the folder of a finished run (OUT), or one written by `effpt export`",
    )
    if "methods" in read_json(folder / "config.json"):  # the ledger, which no stock configuration has
        raise EffptError(
            f"{str(folder)!r} is a training checkpoint, which only hf_effpt can load. Export it first: "
            f"`effpt export {folder} --out DIR`, then `effpt push DIR ORG/NAME`."
        )
    if not (folder / "run.json").is_file():
        raise EffptError(
            f"{str(folder)!r} has no run.json, so no finished run or export wrote it; pass the folder of a run (OUT), "
            "or one written by `effpt export`."
        )


def _refusal(error: HfHubHTTPError, repo_id: str, endpoint: str) -> str:
    status = error.response.status_code
    if status in (401, 403):
        fix = f"The token lacks write access to `{repo_id}`: make one at {endpoint}/settings/tokens."
    elif status == 404:
        fix = f"Check that `{repo_id.split('/')[0]}` exists and that the token may write there."
    else:
        fix = "Nothing was published; push again later."
    return f"{endpoint} refused the upload to `{repo_id}` (HTTP {status}: {error.server_message or error}). {fix}"
