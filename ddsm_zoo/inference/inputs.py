"""Inputs to predict: images and videos of folders, patterns, lists and URLs, and a count of what is left out."""

from __future__ import annotations

import contextlib
import glob
import http.client
import os
import tempfile
import urllib.error
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from ddsm_zoo.data.images import SUFFIXES, UNREAD_SUFFIXES, ImageError
from ddsm_zoo.errors import MissingFileError
from ddsm_zoo.inference.video import VIDEO_SUFFIXES

Source = str | os.PathLike[str]

# Kinds of files that a search of folders and patterns leaves out, by their names in messages
HIDDEN, RESULTS, VIDEOS, OTHERS = "hidden files", "results of earlier runs", "videos", "images of other formats"
BROKEN = "broken links"
_ONE = {
    HIDDEN: "hidden file",
    RESULTS: "result of an earlier run",
    VIDEOS: "video",
    OTHERS: "image of another format",
    BROKEN: "broken link",
}

_SCHEMES = ("http://", "https://")
_RESULT_ENDS = ("_ids.png", "_color.png", "_colour.png", "_overlay.png")  # 0.1.0 wrote _colour
_SECONDS = 30  # without an answer, after which a download fails
_LARGEST = 4 * 2**30  # bytes of a download
_APPLE_DOUBLE = b"\x00\x05\x16\x07"  # the start of files ._NAME, in which macOS keeps metadata on other file systems


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Files and URLs to predict without duplicates, and the rest.

    Attributes:
        images: Images. URLs are text, files are paths.
        videos: Videos, in the same form.
        failures: Source and error of each source that does not exist or in which nothing was found.
        left_out: Files that were left out of folders, patterns and lists, by the reason.
    """

    images: tuple[Source, ...]
    videos: tuple[Source, ...]
    failures: tuple[tuple[Source, Exception], ...] = ()
    left_out: dict[str, list[Path]] = field(default_factory=dict)

    def notes(self) -> list[str]:
        """Describe the skipped files, one line for each reason."""
        advice = {VIDEOS: "; to segment a video, pass its path", OTHERS: "; convert them to JPEG or PNG"}
        lines = []
        for reason, files in self.left_out.items():
            kinds = Counter(file.suffix.lower() for file in files)
            shown = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(4))
            example = str(files[0]) if len(files) == 1 else f"first {files[0]}"
            count = f"1 {_ONE[reason]}" if len(files) == 1 else f"{len(files)} {reason}"
            lines.append(f"skipped {count} ({shown if reason == OTHERS else example}){advice.get(reason, '')}")
        return lines


def find_inputs(sources: Source | Iterable[Source], out_dir: Source) -> Inputs:
    """Find the files to predict.

    Args:
        sources: Each is a file, which is taken as it is; a folder, of which all images are taken, also those of its
            subfolders; a pattern such as ``photos/**/*.jpg``; a list of sources, one a line, in a file ``NAME.txt`` or
            ``@NAME``, relative to the current folder or else to that of the list, with comments after ``#``; or an http
            or https URL of an image or video.
        out_dir: Folder of the results. It is skipped when folders are searched, and so are results of earlier calls.

    Returns:
        Images, videos, a failure for each source without any, and the files left out.
    """
    search = _Search(Path(out_dir))
    for source in [sources] if isinstance(sources, (str, os.PathLike)) else sources:
        search.add(os.fspath(source))
    unique = {source if is_url(source) else Path(source).absolute(): source for source in search.found}.values()
    videos = tuple(source for source in unique if suffix_of(source) in VIDEO_SUFFIXES)
    return Inputs(
        images=tuple(source for source in unique if suffix_of(source) not in VIDEO_SUFFIXES),
        videos=videos,
        failures=tuple(search.failures),
        left_out=search.left_out,
    )


def is_url(source: object) -> bool:
    """Return True for the text of an http or https URL."""
    return isinstance(source, str) and source.lower().startswith(_SCHEMES)


def suffix_of(source: Source) -> str:
    """Return the suffix of a file or URL in lower case."""
    return _path_of(source).suffix.lower()


def stem_of(source: Source) -> str:
    """Return the name of a file or URL without folder and suffix."""
    return _path_of(source).stem or "image"


@contextlib.contextmanager
def local_file(source: Source) -> Iterator[Path]:
    """Yield the path of a source. A URL is downloaded into a temporary file.

    Raises ImageError if the download fails.
    """
    if not is_url(source):
        yield Path(source)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"download{suffix_of(source)}"
        try:
            # the scheme is http or https, see `is_url`
            request = urllib.request.Request(str(source), headers={"User-Agent": "ddsm-zoo"})  # noqa: S310
            with urllib.request.urlopen(request, timeout=_SECONDS) as answer:  # noqa: S310
                _copy(answer, path)
        except urllib.error.HTTPError as error:
            error.close()
            raise ImageError(f"cannot download {source}: {error}", kind="download", name=str(source)) from error
        except (OSError, ValueError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            raise ImageError(f"cannot download {source}: {reason}", kind="download", name=str(source)) from error
        try:
            yield path
        except ImageError as error:
            raise ImageError(str(error).replace(str(path), str(source)), kind=error.kind, name=str(source)) from error


def _copy(answer: Any, path: Path) -> None:
    """Write an HTTP response to a file. Raises ImageError if it is too large or ends early."""
    copied = 0
    with path.open("wb") as file:
        while chunk := answer.read(2**20):
            copied += len(chunk)
            if copied + (answer.length or 0) > _LARGEST:
                problem = f"it has more than {_LARGEST} bytes; download it yourself and name the file"
                raise ImageError(problem, kind="download")
            file.write(chunk)
    if answer.length:
        problem = f"the connection ended after {copied} bytes, expected {answer.length} more; try again"
        raise ImageError(problem, kind="download")


class _Search:
    """Collection of the files that sources name."""

    def __init__(self, out_dir: Path) -> None:
        self.out_dir = out_dir.resolve()
        self.found: list[Source] = []
        self.failures: list[tuple[Source, Exception]] = []
        self.left_out: dict[str, list[Path]] = {}

    def add(self, source: str, base: Path | None = None) -> None:
        """Add a source, the line of a list in the folder ``base`` or one that the user named."""
        if not source.strip():
            error = ImageError("got an empty name, expected a file, folder or URL; is a variable of the shell unset?")
            self.failures.append((source, error))
            return
        if is_url(source):
            self.found.append(source)
            return
        if "://" in source:
            error = ImageError(
                f"{source} cannot be read, expected a file or a URL of http or https", kind="address", name=source
            )
            self.failures.append((source, error))
            return
        path = Path(source)
        if base is not None and not path.is_absolute() and not path.exists():
            path = base / path
        if path.is_dir():
            self._add_folder(path)
        elif base is None and not path.exists() and source.startswith("@"):
            self._add_list(Path(source[1:]))
        elif base is None and path.suffix.lower() == ".txt":
            self._add_list(path)
        elif not path.exists() and glob.has_magic(source):
            files = [Path(file) for file in sorted(glob.glob(str(path), recursive=True))]  # noqa: PTH207  # absolute patterns
            self._add_found(source, files, f"no images match {source}")
        elif _is_apple_double(path):
            self._leave_out(HIDDEN, path)
        elif _is_missing(path):
            problem = f"{path} is a link to a missing file" if path.is_symlink() else f"{path} does not exist"
            missing = MissingFileError(
                f"{problem}, expected an image, a video, a folder or a list of these; check "
                "the path and the current folder",
                path=path,
            )
            self.failures.append((path, missing))
        else:
            self.found.append(path)

    def _add_folder(self, folder: Path) -> None:
        files = []
        for parent, folders, names in os.walk(folder):
            here = Path(parent)
            folders[:] = sorted(name for name in folders if name[0] != "." and (here / name).resolve() != self.out_dir)
            files += [here / name for name in sorted(names)]
        self._add_found(str(folder), sorted(files), f"no images in the folder {folder}")

    def _add_list(self, path: Path) -> None:
        try:
            lines = [line.strip() for line in _read_lines(path)]
        except OSError as error:
            self.failures.append(
                (path, ImageError(f"the list {path} cannot be read: {error.strerror}", kind="list-file", path=path))
            )
            return
        lines = [line for line in lines if line and (not line.startswith("#") or Path(line).exists())]
        if not lines:
            self.failures.append(
                (
                    path,
                    ImageError(
                        f"the list {path} is empty, expected one image or video a line", kind="list-file", path=path
                    ),
                )
            )
        for line in lines:
            self.add(line, path.parent)

    def _add_found(self, source: str, files: Iterable[Path], nothing: str) -> None:
        """Add the images among the files that a folder or pattern has."""
        before = len(self.found)
        for file in files:
            suffix = file.suffix.lower()
            known = suffix in SUFFIXES or suffix in VIDEO_SUFFIXES or suffix in UNREAD_SUFFIXES
            if known and file.is_symlink() and not file.exists():
                self._leave_out(BROKEN, file)
                continue
            if not known or file.is_dir():
                continue
            if file.name.startswith("."):
                self._leave_out(HIDDEN, file)
            elif _is_result(file):
                self._leave_out(RESULTS, file)
            elif suffix in SUFFIXES or (suffix in VIDEO_SUFFIXES and glob.has_magic(source)):
                self.found.append(file)
            else:
                self._leave_out(VIDEOS if suffix in VIDEO_SUFFIXES else OTHERS, file)
        if len(self.found) == before:
            self.failures.append(
                (
                    source,
                    ImageError(f"{nothing}, expected {', '.join(sorted(SUFFIXES))}", kind="no-images", name=source),
                )
            )

    def _leave_out(self, reason: str, file: Path) -> None:
        self.left_out.setdefault(reason, []).append(file)


def _path_of(source: Source) -> Path | PurePosixPath:
    if not is_url(source):
        return Path(source)
    return PurePosixPath(urllib.parse.unquote(urllib.parse.urlsplit(str(source)).path))


def _is_result(file: Path) -> bool:
    """Return True if ``predict`` wrote this file: it has class ids and an overlay beside it, or is one of them."""
    stems = [file.name.removesuffix(end) for end in _RESULT_ENDS if file.name.endswith(end)]
    return any(
        file.with_name(f"{stem}_ids.png").is_file() and file.with_name(f"{stem}_overlay.png").is_file()
        for stem in stems
    )


def _is_missing(path: Path) -> bool:
    """Return True if there is no file. Other faults, such as a folder without access, are left to the reader."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    return False


def _is_apple_double(path: Path) -> bool:
    if not path.name.startswith("._"):
        return False
    try:
        with path.open("rb") as file:
            return file.read(4) == _APPLE_DOUBLE
    except OSError:
        return False


def _read_lines(path: Path) -> list[str]:
    """Read the lines of a text in UTF-8 or UTF-16, in which any bytes may be names of files."""
    content = path.read_bytes()
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return content.decode("utf-16", errors="replace").splitlines()
    return os.fsdecode(content.removeprefix(b"\xef\xbb\xbf")).splitlines()
