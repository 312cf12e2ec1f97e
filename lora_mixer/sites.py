"""
Adapters on a model site, by hash: what a file is called there, its newest version, and the file itself, checked.

Nothing here is asked unless somebody calls it. The interface is the one that the large sites have: ``/model-versions/by-hash/HASH``
and ``/models/ID``, JSON both. What a site says is a stranger's text: sizes are bounded, names lose their folders, and a file is
kept only when its hash is the one that was asked for.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from lora_mixer.atomic import write_files
from lora_mixer.errors import CorruptFileError, SourceError
from lora_mixer.parsing.files import at_home
from lora_mixer.parsing.json_text import json_or_none
from lora_mixer.parsing.values import as_float, as_hash, as_int, as_list, as_table, as_text, clean_text
from lora_mixer.wording import first_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    from lora_mixer.picture_metadata.settings import PictureAdapter

__all__ = ["SITE", "ModelSite", "SiteFile"]

SITE = "https://civitai.com/api/v1"
"""The interface that is asked where no other is named; the environment variable ``LORA_MIXER_SITE`` names another."""
_NOT_FOUND = 404
_ANSWER_AT_MOST = 8 << 20
_FILE_AT_MOST = 32 << 30
_CHUNK = 1 << 20
_LISTED_AT_MOST = 200
_KINDS = ("SHA256", "AutoV3", "AutoV2", "AutoV1", "BLAKE3")


@dataclass(frozen=True)
class SiteFile:
    """
    A file as a site describes it.

    Attributes:
        name: Its name there, without a folder.
        title: What the model is called.
        version: What this version is called.
        base: The base model, in the site's words.
        words: What calls for it in a prompt.
        licence: What the site says that may be done with it, where it says so.
        size: In bytes, as the site says; 0 where it does not.
        hashes: By kind, in small letters.
        page: The address of its page.
        address: Where it is downloaded from.
        model_id: The model's number.
        version_id: The version's number.

    Example:
        >>> SiteFile("ink.safetensors", title="Ink").words
        ()
    """

    name: str
    title: str = ""
    version: str = ""
    base: str = ""
    words: tuple[str, ...] = ()
    licence: str = ""
    size: int = 0
    hashes: Mapping[str, str] = field(default_factory=dict)
    page: str = ""
    address: str = ""
    model_id: int = 0
    version_id: int = 0


class ModelSite:
    """
    A model site's public interface.

    Args:
        endpoint: Its address; ``SITE``, or the environment's ``LORA_MIXER_SITE``, when None.
        token: For files that need one; the environment's ``LORA_MIXER_SITE_TOKEN`` when None. It is sent to this site alone.
        timeout: How long an answer may take, in seconds.

    Raises:
        SourceError: When the address is none of the web.

    Example:
        >>> ModelSite("https://example.org/api/v1").endpoint
        'https://example.org/api/v1'
    """

    def __init__(
        self, endpoint: str | None = None, *, token: str | None = None, timeout: float = 30.0
    ) -> None:
        """Ask nothing yet."""
        self.endpoint = (endpoint or os.environ.get("LORA_MIXER_SITE") or SITE).rstrip("/")
        self._token = token or os.environ.get("LORA_MIXER_SITE_TOKEN")
        self._timeout = timeout
        self._host = _host_of(self.endpoint)
        self._opener = build_opener(_SameHost(self._host))

    def by_hash(self, digits: str) -> SiteFile | None:
        """
        Say what a file is.

        Args:
            digits: One of its hashes, in hexadecimal.

        Returns:
            What the site says of it, or None where the site does not know it.

        Raises:
            SourceError: When it is not a hash, or the site does not answer.

        Example:
            >>> ModelSite().by_hash("0123456789").title  # doctest: +SKIP
            'Ink'
        """
        wanted = as_hash(digits)
        if wanted is None:
            raise SourceError(
                f"expected a hash of 8 to 64 hexadecimal digits, got {digits[:80]!r}", argument="digits"
            )
        version = self._json(f"/model-versions/by-hash/{quote(wanted)}")
        if version is None:
            return None
        return next(
            (file for file in self._files(version) if any(_alike(wanted, x) for x in file.hashes.values())),
            None,
        )

    def newest(self, file: SiteFile) -> SiteFile | None:
        """
        Return the newest version of a file's model, where that is another one.

        Args:
            file: The file, as :meth:`by_hash` gave it.

        Raises:
            SourceError: When the site does not answer.

        Example:
            >>> site.newest(file).version  # doctest: +SKIP
            'v2'
        """
        model = self._json(f"/models/{file.model_id}") if file.model_id else None
        if model is None:
            return None
        for version in map(as_table, as_list(model.get("modelVersions"))[:_LISTED_AT_MOST]):
            if version.get("baseModel", file.base) != file.base:
                continue  # the same model for another base is no newer version of this file
            if as_int(version.get("id")) == file.version_id:
                return None
            files = self._files({**version, "modelId": file.model_id, "model": model})
            if files:
                return files[0]
        return None

    def find(self, adapters: Iterable[PictureAdapter]) -> dict[str, SiteFile]:
        """
        Ask for the adapters that a picture names, by their hashes.

        Args:
            adapters: As ``match_adapters(...).missing`` gives them.

        Returns:
            What the site knows, by the picture's names.

        Raises:
            SourceError: When the site does not answer.

        Example:
            >>> site.find(match_adapters(read_picture("x.png"), library.known()).missing)  # doctest: +SKIP
            {'ink': SiteFile(name='ink.safetensors', ...)}
        """
        files = {}
        for adapter in adapters:
            for digits in adapter.hashes.values():
                if as_hash(digits) is not None and (file := self.by_hash(digits)) is not None:
                    files[adapter.name] = file
                    break
        return files

    def download(
        self,
        file: SiteFile,
        folder: str | os.PathLike[str],
        *,
        progress: Callable[[int], object] = lambda _: None,
    ) -> Path:
        """
        Fetch a file into a folder; it is there only when it is whole and has the hash that the site states.

        Args:
            file: The file, as :meth:`by_hash` gave it.
            folder: Where it goes, under its name there.
            progress: Called with the bytes that came.

        Returns:
            The file's path.

        Raises:
            SourceError: When the site does not give it, it is not a .safetensors file, or a file of that name is there.
            CorruptFileError: When what came is something else.
            SaveError: When the disk refuses.

        Example:
            >>> site.download(file, "loras")  # doctest: +SKIP
            PosixPath('loras/ink.safetensors')
        """
        place = at_home(folder) / file.name
        digest = file.hashes.get("sha256", "")
        if not file.name.lower().endswith(".safetensors"):
            raise SourceError(
                f"is not a .safetensors file; get it from its page: {file.page}", file=file.name
            )
        if not digest:
            raise SourceError(
                "the site states no SHA-256 of it, so what comes could not be checked",
                file=file.name,
            )
        if place.exists():
            raise SourceError("is there already", file=str(place))
        _host_of(file.address, like=self._host)

        def write(stream: IO[bytes]) -> None:
            sha, came = hashlib.sha256(), 0
            most = min(_FILE_AT_MOST, int(file.size * 1.05) + (1 << 20) if file.size else _FILE_AT_MOST)
            with self._open(file.address) as answer:
                while part := answer.read(_CHUNK):
                    came += len(part)
                    if came > most:
                        raise CorruptFileError(
                            f"more than the {file.size} bytes that the site states came", file=file.name
                        )
                    sha.update(part)
                    stream.write(part)
                    progress(len(part))
            if sha.hexdigest() != digest:
                raise CorruptFileError(
                    f"what came has the SHA-256 {sha.hexdigest()}, the site states {digest}", file=file.name
                )

        write_files({place: write})
        return place

    # --- answers ---------------------------------------------------------------------------------------------------------

    def _files(self, version: Mapping[str, Any]) -> list[SiteFile]:
        """Read the files of a version, the main one first."""
        model = as_table(version.get("model"))
        entries = [as_table(entry) for entry in as_list(version.get("files"))[:_LISTED_AT_MOST]]
        number, model_id = as_int(version.get("id")) or 0, as_int(version.get("modelId")) or 0
        front = self.endpoint.partition("/api")[0]
        return [
            SiteFile(
                name=_plain_name(entry.get("name")),
                title=_short(model.get("name")),
                version=_short(version.get("name")),
                base=_short(version.get("baseModel")),
                words=tuple(_short(word) for word in as_list(version.get("trainedWords"))[:_LISTED_AT_MOST]),
                licence=_licence(model),
                size=int((as_float(entry.get("sizeKB")) or 0) * 1024),
                hashes={
                    kind.lower(): digits
                    for kind in _KINDS
                    if (digits := as_hash(as_table(entry.get("hashes")).get(kind))) is not None
                },
                page=f"{front}/models/{model_id}?modelVersionId={number}",
                address=as_text(entry.get("downloadUrl")) or as_text(version.get("downloadUrl")) or "",
                model_id=model_id,
                version_id=number,
            )
            for entry in sorted(entries, key=lambda entry: not entry.get("primary"))
        ]

    def _json(self, path: str) -> dict[str, Any] | None:
        with self._open(f"{self.endpoint}{path}", missing=True) as answer:
            if answer is None:
                return None
            raw = answer.read(_ANSWER_AT_MOST + 1)
        table = json_or_none(raw) if len(raw) <= _ANSWER_AT_MOST else None
        if not isinstance(table, dict):
            raise SourceError(
                f"answered {path} with something that is not what it should be", file=self._host
            )
        return table

    def _open(self, address: str, *, missing: bool = False) -> Any:
        request = Request(address, headers={"User-Agent": "lora-mixer", "Accept": "*/*"})  # noqa: S310 -- checked to be of the web
        if self._token and urlsplit(address).netloc == self._host:
            request.add_unredirected_header("Authorization", f"Bearer {self._token}")
        try:
            return self._opener.open(request, timeout=self._timeout)
        except HTTPError as error:
            error.close()
            if missing and error.code == _NOT_FOUND:
                return _Nothing()
            needs = "; it needs a token (LORA_MIXER_SITE_TOKEN)" if error.code in (401, 403) else ""
            raise SourceError(f"answers with status {error.code}{needs}", file=self._host) from error
        except (URLError, OSError, ValueError) as error:
            reason = getattr(error, "reason", error)
            raise SourceError(f"does not answer: {first_line(reason, 200)}", file=self._host) from error


class _Nothing:
    """The answer of a site that has nothing."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        return None


class _SameHost(HTTPRedirectHandler):
    """Follow redirections within the web only: from https never to less."""

    def __init__(self, host: str) -> None:
        self._host = host

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        """Return the request that follows."""
        _host_of(newurl, like=self._host)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _host_of(address: str, like: str | None = None) -> str:
    """Return an address's host; plain http is for one's own machine alone."""
    parts = urlsplit(address)
    local = (parts.hostname or "") in ("127.0.0.1", "::1", "localhost")
    if not parts.netloc or not (parts.scheme == "https" or (parts.scheme == "http" and local)):
        what = "the site's address" if like is None else "an address that the site gives"
        raise SourceError(f"{what} must begin with https://", file=address[:200])
    if local and like is not None and urlsplit(f"//{like}").hostname != parts.hostname:
        raise SourceError(f"the site {like} leads to this machine itself", file=address[:200])
    return parts.netloc


def _alike(one: str, other: str) -> bool:
    return one.startswith(other) or other.startswith(one)


def _short(value: object) -> str:
    return clean_text(as_text(value) or "")[:500]


def _plain_name(value: object) -> str:
    name = _short(value).replace("\\", "/").rpartition("/")[2].strip()
    return (
        "".join(letter for letter in name if letter.isprintable()).lstrip(".")[:200] or "adapter.safetensors"
    )


def _licence(model: Mapping[str, Any]) -> str:
    """Say in words what the site's marks of a model allow."""
    said = []
    if "allowNoCredit" in model:
        said.append("no credit needed" if model["allowNoCredit"] else "credit the maker")
    if "allowCommercialUse" in model:
        uses = [text for each in as_list(model["allowCommercialUse"]) if (text := as_text(each))]
        use = as_text(model["allowCommercialUse"])
        said.append(f"commercial use: {', '.join(uses) or use or 'none'}")
    if "allowDerivatives" in model:
        said.append("derivatives allowed" if model["allowDerivatives"] else "no derivatives")
    return "; ".join(said)[:500]
