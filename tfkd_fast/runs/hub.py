"""Files of a run on the Hugging Face Hub: fetched into its cache, or uploaded in one commit.

Place, cache and token are those of huggingface_hub: HF_ENDPOINT, HF_HOME, HF_TOKEN or what `hf auth login` stored.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tfkd_fast.errors import UserError, shorten

if TYPE_CHECKING:
    from huggingface_hub import HfApi

LOG_IN = "log in with hf auth login, or set HF_TOKEN"
LONGEST_REASON = 300
"""Characters of the Hub's own words that a sentence quotes."""


def is_folder(target: Path | str) -> bool:
    """Whether a target names a folder, by a path that begins as ./x, ../x, ~/x or /x or as one that is there, and not
    a repository of the Hub."""
    text = str(target)
    beginnings = (".", "~", "\\")
    return isinstance(target, Path) or text.startswith(beginnings) or Path(text).is_absolute() or Path(text).is_dir()


def fetch(repository: str, names: Sequence[str], revision: str | None = None) -> Path:
    """Bring files of a repository into the cache of the Hub, and return their folder there; without a network, from the
    cache alone.

    Args:
        repository: OWNER/NAME.
        names: the files; those that the repository does not have are left out.
        revision: a branch, a tag or a commit; None for the main branch.

    Raises:
        UserError: there is no such repository or revision, one may not see it, or it cannot be reached.
    """
    with _talking_of(repository, revision):
        return Path(_api().snapshot_download(repository, revision=revision, allow_patterns=list(names)))


def listing(repository: str) -> tuple[set[str], bool] | None:
    """The names of a repository's files, and whether it is private; None where there is none that one may see.

    Raises:
        UserError: the name is none of a repository, or the Hub cannot be reached.
    """
    with _talking_of(repository):
        from huggingface_hub.errors import RepositoryNotFoundError

        try:
            found = _api().model_info(repository)
        except RepositoryNotFoundError:
            return None
        return {file.rfilename for file in found.siblings or ()}, bool(found.private)


def upload(repository: str, files: Mapping[str, Path | bytes], *, without: Sequence[str], private: bool) -> str:
    """Put files into a repository, which is made where it is missing, in one commit, and return its address.

    Args:
        repository: OWNER/NAME.
        files: what the repository is to have, by name; a path stands for the content of that file.
        without: names of files that the same commit takes out of it.
        private: whether a repository that is made is for its owner only; or else that is as the owner has set it.

    Raises:
        UserError: the Hub refuses it, or cannot be reached.
    """
    with _talking_of(repository):
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        api = _api()
        api.create_repo(repository, private=private or None, exist_ok=True)
        changes: list[CommitOperationAdd | CommitOperationDelete] = [
            *(CommitOperationAdd(name, content) for name, content in files.items()),
            *(CommitOperationDelete(name) for name in without),
        ]
        return str(api.create_commit(repository, changes, commit_message="A run of tfkd-fast").repo_url)


def address(repository: str) -> str:
    """The address of a repository.

    Raises:
        UserError: huggingface_hub is not installed.
    """
    return f"{_api().endpoint}/{repository}"


def _api() -> "HfApi":
    try:
        from huggingface_hub import HfApi
    except ImportError:
        raise UserError("the Hugging Face Hub needs huggingface_hub: pip install 'tfkd-fast[hub]'") from None
    import tfkd_fast

    return HfApi(library_name="tfkd-fast", library_version=tfkd_fast.__version__)


@contextmanager
def _talking_of(repository: str, revision: str | None = None) -> Iterator[None]:
    """Context manager for a block that asks the Hub for something: what it raises becomes one sentence."""
    _api()  # or how to install it
    from huggingface_hub import errors

    if repository.count("/") != 1:
        raise UserError(f"{shorten(repository)} is no repository of the Hub: name it OWNER/NAME, or a folder as ./NAME")
    try:
        yield
    except UserError:
        raise
    except errors.HFValidationError as error:
        raise UserError(
            f"{shorten(repository)} is no name of a repository of the Hub ({_in_short(error)}): name it OWNER/NAME, or "
            "a folder as ./NAME"
        ) from None
    except errors.GatedRepoError:
        raise UserError(
            f"the repository {repository} wants its conditions accepted on the Hub first, by the user whose token is "
            f"used: {LOG_IN}"
        ) from None
    except errors.RepositoryNotFoundError:
        raise UserError(
            f"there is no repository {repository} on the Hub, or one may not see it: mend the name, or {LOG_IN}"
        ) from None
    except errors.RevisionNotFoundError:
        raise UserError(f"the repository {repository} has no revision {shorten(revision)}: name another one") from None
    except errors.HfHubHTTPError as error:
        if error.response.status_code in (401, 403):
            raise UserError(
                f"the Hub does not let you do this with {repository} ({_in_short(error)}): {LOG_IN}, with a token that "
                "may write there"
            ) from None
        raise UserError(f"the Hub refuses {repository} ({_in_short(error)}): try it again later") from None
    except errors.LocalEntryNotFoundError as error:
        raise UserError(
            f"the repository {repository} is not in the cache, and the Hub cannot be reached "
            f"({_in_short(error.__cause__ or error)}): try it again with a network"
        ) from None
    except Exception as error:
        raise UserError(f"the Hub failed with {repository} ({_in_short(error)}): try it again later") from None


def _in_short(error: BaseException) -> str:
    text = " ".join((str(getattr(error, "server_message", None) or error)).split())
    return text[:LONGEST_REASON] or type(error).__name__
