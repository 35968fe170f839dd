"""Sources become images and videos, and what is left out is counted."""

from __future__ import annotations

import http.server
import os
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from PIL import Image

from ddsm_zoo.data.images import ImageError, read_image
from ddsm_zoo.inference.inputs import BROKEN, HIDDEN, OTHERS, RESULTS, VIDEOS, find_inputs, local_file, stem_of
from tests.support.errors import raises


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def touch(*names: str) -> None:
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()


def names(sources: object) -> list[str]:
    return [str(source) for source in sources]


def test_folders_are_searched_whole_and_the_rest_is_counted(here: Path) -> None:
    touch("in/a.jfif", "in/b/c/d.PGM", "in/notes.txt", "in/x.HEIC", "in/y.dng", "in/._a.JPG", "in/.cache/e.png")
    touch(
        "in/clip.mts",
        "in/a_ids.png",
        "in/a_color.png",
        "in/a_colour.png",
        "in/a_overlay.png",
        "in/depth_color.png",
        "in/out/f.png",
    )
    inputs = find_inputs("in", "in/out")
    assert names(inputs.images) == ["in/a.jfif", "in/b/c/d.PGM", "in/depth_color.png"]
    assert inputs.videos == inputs.failures == ()
    assert {reason: len(files) for reason, files in inputs.left_out.items()} == {
        HIDDEN: 1, OTHERS: 2, RESULTS: 4, VIDEOS: 1,
    }  # fmt: skip
    notes = "\n".join(inputs.notes())
    assert "2 images of other formats (1 .heic, 1 .dng)" in notes
    assert "1 video (in/clip.mts)" in notes
    assert "1 hidden file (in/._a.JPG)" in notes
    assert "4 results of earlier runs (first in/" in notes


def test_each_is_found_once(here: Path) -> None:
    touch("sub/b.JPG", "a.png", "clip.MP4")
    inputs = find_inputs(["sub/b.JPG", ".", "clip.MP4", "./a.png"], "out")
    assert names(inputs.images) == ["sub/b.JPG", "a.png"]
    assert names(inputs.videos) == ["clip.MP4"]


@pytest.mark.parametrize(
    "name", ["a.ts", "a.MTS", "a.m2ts", "a.flv", "a.3gp", "a.webm", "a.mkv", "a.avi", "a.mpeg", "a.wmv", "a.ogv"]
)
def test_videos_by_their_suffix(here: Path, name: str) -> None:
    touch(name)
    assert names(find_inputs(name, "out").videos) == [name]


def test_patterns(here: Path) -> None:
    touch("in/a.png", "in/b.txt", "in/sub/c.png", "in/sub/d.mp4", "in/[e].png", "in/.h.png")
    assert names(find_inputs("in/*", "out").images) == ["in/[e].png", "in/a.png"]
    every = find_inputs(str(here / "in" / "**" / "*"), "out")
    assert len(every.images) == 3
    assert len(every.videos) == 1
    assert names(find_inputs("in/[e].png", "out").images) == ["in/[e].png"]  # a file of this name is no pattern
    ((source, error),) = find_inputs("in/*.jpg", "out").failures
    assert source == "in/*.jpg"
    assert "no images match in/*.jpg, expected" in str(error)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("mark", ["", "@"])
def test_lists(here: Path, encoding: str, mark: str) -> None:
    touch("here.png", "lists/beside.png", "folder/f.png")
    text = "here.png\r\n\r\n beside.png \nfolder\nmissing.png\nhttps://example.org/street.jpg?size=2\n"
    Path("lists/all.txt").write_text(text, encoding=encoding)
    inputs = find_inputs(f"{mark}lists/all.txt", "out")
    assert names(inputs.images) == [
        "here.png", "lists/beside.png", "folder/f.png", "https://example.org/street.jpg?size=2",
    ]  # fmt: skip
    assert [str(source) for source, _ in inputs.failures] == ["lists/missing.png"]


def test_lists_of_names_that_are_not_utf8(here: Path) -> None:
    Path("all.txt").write_bytes(b"caf\xe9.png\n")
    touch(os.fsdecode(b"caf\xe9.png"))
    assert [os.fsencode(source) for source in find_inputs("all.txt", "out").images] == [b"caf\xe9.png"]


def test_files_that_do_not_exist_are_failures(here: Path) -> None:
    touch("a.png")
    Path("nowhere.png").symlink_to("gone.png")
    inputs = find_inputs(["a.png", "absent.png", "absent.mp4", "a.png/b.png", "nowhere.png"], "out")
    assert names(inputs.images) == ["a.png"]
    assert inputs.videos == ()
    assert [str(source) for source, _ in inputs.failures] == ["absent.png", "absent.mp4", "a.png/b.png", "nowhere.png"]
    for source, error in inputs.failures:
        with raises(FileNotFoundError, kind="missing-file", path=str(source)):
            raise error


def test_lists_that_give_nothing(here: Path) -> None:
    touch("empty.txt")
    failures = find_inputs(["empty.txt", "@absent", "rtsp://camera/1"], "out").failures
    assert [str(source) for source, _ in failures] == ["empty.txt", "absent", "rtsp://camera/1"]
    texts = " | ".join(str(error) for _, error in failures)
    assert "the list empty.txt is empty" in texts
    assert "the list absent cannot be read: No such file" in texts
    assert "rtsp://camera/1 cannot be read, expected a file or a URL of http or https" in texts


def test_comments_in_lists_and_names_that_are_empty(here: Path) -> None:
    touch("a.png", "#b.png")
    Path("all.txt").write_text("# my photos\na.png\n\n#b.png\n")
    inputs = find_inputs(["all.txt", ""], "out")
    assert names(inputs.images) == ["a.png", "#b.png"]
    ((_, error),) = inputs.failures
    assert "got an empty name" in str(error)


def test_broken_links_are_counted(here: Path) -> None:
    touch("in/a.png")
    Path("in/gone.png").symlink_to("nowhere")
    inputs = find_inputs("in", "out")
    assert names(inputs.left_out[BROKEN]) == ["in/gone.png"]
    (note,) = inputs.notes()
    assert "1 broken link (in/gone.png)" in note


def test_a_pipe_in_a_folder_is_not_left_out_in_silence(here: Path) -> None:
    touch("in/a.png")
    os.mkfifo("in/b.png")
    assert names(find_inputs("in", "out").images) == ["in/a.png", "in/b.png"]  # reading it is an error


def test_metadata_of_macos_is_no_image_even_where_it_is_named(here: Path) -> None:
    Path("._x.JPG").write_bytes(b"\x00\x05\x16\x07\x00\x02\x00\x00")
    Image.new("RGB", (2, 2)).save("._y.jpg")
    inputs = find_inputs(["._x.JPG", "._y.jpg"], "out")
    assert names(inputs.images) == ["._y.jpg"]
    assert names(inputs.left_out[HIDDEN]) == ["._x.JPG"]


@pytest.fixture
def server(here: Path) -> Iterator[str]:
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=here)
    handler.func.log_message = lambda *_: None  # type: ignore[attr-defined]
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def test_urls_are_downloaded_and_named_in_errors(here: Path, server: str) -> None:
    Image.new("RGB", (4, 3), (9, 8, 7)).save("a b.png")
    Path("text.png").write_text("no image")
    (url,) = find_inputs(f"{server}/a%20b.png?size=2", "out").images
    assert stem_of(url) == "a b"
    with local_file(url) as path:
        assert read_image(path).size == (4, 3)
        copy = path
    assert not copy.exists()
    assert find_inputs("HTTPS://host/drive.mp4", "out").videos == ("HTTPS://host/drive.mp4",)
    with raises(ImageError, kind="image-format", name=f"{server}/text.png"), local_file(f"{server}/text.png") as path:
        read_image(path)
    with raises(ImageError, kind="download", name=f"{server}/absent.png"):
        local_file(f"{server}/absent.png").__enter__()


class EndsEarly(http.server.BaseHTTPRequestHandler):
    """Claims ten bytes, or far too many, and sends three."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "10" if "cut" in self.path else str(2**40))
        self.end_headers()
        self.wfile.write(b"abc")

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize(("name", "said"), [("cut.png", "after 3 bytes, expected 7 more"), ("vast.png", "4294967296")])
def test_downloads_that_end_early_or_are_too_large(name: str, said: str) -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), EndsEarly) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{running.server_port}/{name}"
        with raises(ImageError, kind="download", name=url) as error:
            local_file(url).__enter__()
        assert said in str(error.value)
        running.shutdown()
