"""A page to try models on: a picture goes in, its classes come out, and what DDSM samples for the pixel one clicks."""

from __future__ import annotations

import base64
import io
import os
import random
import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ddsm_zoo.data.images import ImageError, read_image
from ddsm_zoo.data.scenes.render import render_scene
from ddsm_zoo.explain.explain import Explanation, Level, explain
from ddsm_zoo.hub.client import is_uri
from ddsm_zoo.inference.predictor import Predictor, Segmentation
from ddsm_zoo.utils.signals import interruptible
from ddsm_zoo.utils.visualize import BLACK, WHITE
from ddsm_zoo.zoo.registry import find, list_pretrained

Pixel = tuple[int, int]
Send = Callable[[Any], Awaitable[None]]

SAMPLE = Path(__file__).parents[1] / "data" / "sample" / "street.png"
SIDE = 1600  # pixels: a larger picture is reduced to it, no screen shows more and the answer must come soon
SHOWN = 960  # a smaller one is shown enlarged to this or more, because gradio takes clicks for those of no larger size
UPLOAD = "64mb"  # the largest file that is taken

PANEL = (640, 400)  # of the picture of a module's samples, twice as large as it is shown
MARGIN = 1.25  # how much further than the farthest sample it reaches
RED, BLUE, GRAY = (214, 30, 40), (20, 60, 230), (225, 225, 225)

# What a browser may fetch for the page: only what this server has, whatever gradio would like
POLICY = b"default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'"
CSS = (Path(__file__).parent / "page.css").read_text(encoding="utf-8")
HINT = "Click a pixel of the picture to see which positions DDSM samples for it."
READING = "Each module reads at its crosses. The larger the disc, the more it counts."
EMPTY = "Drop a picture on the left, or take one of the rendered streets."


@dataclass(frozen=True, kw_only=True)
class View:
    """What the page shows of one picture, a file with that ``name`` and ``size`` (W, H).

    ``at`` (x, y) is the pixel of the picture as it was labelled that was clicked, if any. It has an ``explanation``, or
    a ``note`` says why not.
    """

    name: str
    size: tuple[int, int]
    result: Segmentation
    at: Pixel | None = None
    explanation: Explanation | None = None
    note: str = HINT

    @property
    def factor(self) -> int:
        """How many pixels a side the page shows for one that was labelled."""
        return -(-SHOWN // max(self.result.image.size))

    def picture(self) -> Image.Image:
        """The overlay, enlarged by `factor`, with a cross on the pixel ``at``."""
        overlay, factor = self.result.overlay(legend=False), self.factor
        overlay = overlay.resize((factor * overlay.width, factor * overlay.height), Image.Resampling.NEAREST)
        if self.at is not None:
            x, y = self.at
            _draw_cross(overlay, (factor * x + factor // 2, factor * y + factor // 2))
        return overlay

    def caption(self) -> str:
        """One line of HTML."""
        sizes = [self.size, self.result.image.size]
        texts = [f"{width} x {height} pixels" for width, height in dict.fromkeys(sizes)]
        return f"<p>{escape(self.name)}: {', labelled at '.join(texts)}</p>"

    def classes(self) -> str:
        """The legend as HTML: colour, name and share of each class present, the largest first."""
        colors = dict(zip(self.result.labels.names, self.result.labels.palette, strict=True))
        shares = sorted(self.result.shares().items(), key=lambda item: -item[1])
        largest = shares[0][1]
        rows = [
            f'<tr><td><i style="background: rgb{colors[name]}"></i></td><td>{escape(name)}</td>'
            f'<td><b style="width: {share / largest:.1%}"></b></td><td>{share:.1%}</td></tr>'
            for name, share in shares
            if share
        ]
        return f'<table class="classes">{"".join(rows)}</table>'

    def samples(self) -> str:
        """What each module samples for the pixel, as HTML with a picture for each, or the note."""
        if self.explanation is None:
            return f"<p>{escape(self.note)}</p>"
        x, y = self.explanation.at
        parts = [f"<h3>Pixel {x},{y}: {escape(self.explanation.label)}</h3><p>{READING}</p>"]
        for level in self.explanation.levels:
            picture = _data_address(draw_samples(self.explanation.result.image, level))
            text = f"x̃{level.stage}: {len(level.positions)} positions, cells of {level.pitch:.4g} pixels"
            parts.append(f'<figure><img src="{picture}" alt="{text}"><figcaption>{text}</figcaption></figure>')
        return "".join(parts)


def look(predictor: Predictor, path: Path, at: Pixel | None = None) -> View:
    """Label the picture in a file, reduced to sides of at most `SIDE`, and explain the pixel ``at`` (x, y) of that.

    Raises FileNotFoundError, ImageError, which names the file without its folder, and what the predictor raises.
    """
    try:
        picture = read_image(path)
    except ImageError as error:
        raise ImageError(str(error).replace(str(path), path.name)) from error
    size = picture.size
    picture.thumbnail((SIDE, SIDE))
    if at is None:
        return View(name=path.name, size=size, result=predictor(picture))
    try:
        explanation = explain(predictor, picture, at)
    except ValueError as error:  # a model that samples nothing has classes all the same
        return View(name=path.name, size=size, result=predictor(picture), at=at, note=str(error))
    return View(name=path.name, size=size, result=explanation.result, at=at, explanation=explanation)


def draw_samples(image: Image.Image, level: Level) -> Image.Image:
    """Where a module reads: a cross at each position in a disc whose area is its affinity, around the pixel's cell.

    The largest affinities are written beside. The picture has the size `PANEL` and shows all positions; what lies
    beyond the image is grey.
    """
    width, height = PANEL
    center = np.asarray(level.center)
    half_width, half_height = np.maximum(MARGIN * np.abs(level.positions - center).max(0), 3 * level.pitch)
    scale = min(width / half_width, height / half_height) / 2
    left, top = center + 0.5 - np.asarray(PANEL) / scale / 2  # of the window, from the corner of the image
    window = (left, top, left + width / scale, top + height / scale)
    panel = image.transform(PANEL, Image.Transform.EXTENT, window, Image.Resampling.BILINEAR, fillcolor=GRAY)
    panel = Image.blend(panel, Image.new("RGB", PANEL, WHITE), 0.25)
    pen = ImageDraw.Draw(panel, "RGBA")
    x, y = np.asarray(PANEL) / 2
    side = level.pitch * scale / 2
    pen.rectangle([x - side, y - side, x + side, y + side], outline=BLUE, width=3)
    pen.line([x - 12, y, x + 12, y], BLUE, 4)
    pen.line([x, y - 12, x, y + 12], BLUE, 4)
    places = (level.positions - center) * scale + (x, y)
    for (x, y), affinity in zip(places.tolist(), level.affinities.tolist(), strict=True):
        pen.circle((x, y), 90 * affinity**0.5, fill=(*RED, 80))
        pen.line([x - 7, y - 7, x + 7, y + 7], RED, 3)
        pen.line([x - 7, y + 7, x + 7, y - 7], RED, 3)
    font = ImageFont.load_default(24)
    main = level.affinities.argsort()[::-1][:3]
    for tap in main[level.affinities[main] > 0.005].tolist():
        text, corner = f"{level.affinities[tap]:.0%}", (places[tap, 0] + 10, places[tap, 1] - 34)
        pen.rectangle(pen.textbbox(corner, text, font), fill=(*WHITE, 190))
        pen.text(corner, text, BLACK, font)
    return panel


def offered(given: Sequence[str]) -> list[str]:
    """The models to choose from: those given and all whose weights are published, first what needs no network.

    Raises UnknownModelError for a name that is given.
    """
    return sorted(dict.fromkeys((*given, *list_pretrained())), key=lambda name: not _is_here(name))


def listen(host: str, port: int) -> socket.socket:
    """A socket that takes connections, at any free port for 0. Raises OSError of one line."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        reason = str(error.strerror).partition(" (while")[0]  # Python adds the address once more
        raise OSError(f"cannot listen on {host}:{port}: {reason}; choose others with --host and --port") from error


def address(listener: socket.socket) -> str:
    """Where a browser finds what listens there."""
    host, port, *_ = listener.getsockname()
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def find_gradio() -> Any:
    """The package gradio. Raises LookupError where it is not installed."""
    try:
        import gradio
    except ModuleNotFoundError as error:
        raise LookupError("the page needs the package gradio: pip install 'ddsm-zoo[demo]'") from error
    return gradio


def build_page(names: Sequence[str], chosen: str, load: Callable[[str], Predictor], folder: Path) -> Any:
    """The page as gradio's Blocks: ``load`` gives the predictor of each of the names, pictures are kept in ``folder``.

    One prediction is made at a time; others wait for their turn. Raises LookupError without the package gradio.
    """
    os.environ["GRADIO_TEMP_DIR"] = str(folder)  # where gradio looks for it, and nowhere else
    gr = find_gradio()

    def show(path: str | None, name: str, at: Pixel | None) -> tuple[Any, ...]:
        if path is None:
            return None, f"<p>{EMPTY}</p>", "", f"<p>{HINT}</p>", 1
        try:
            view = look(load(name), Path(path), at)
        except (ValueError, LookupError, OSError) as error:
            if type(error) in (KeyError, IndexError):  # ours are subclasses: a bare one is a bug
                raise
            return None, f'<p class="error">{escape(str(error))}</p>', "", "", 1
        return view.picture(), view.caption(), view.classes(), view.samples(), view.factor

    def begin(path: str | None, name: str) -> tuple[Any, ...]:
        return None, *show(path, name, None)

    def explain_at(path: str | None, name: str, factor: int, event: Any) -> tuple[Any, ...]:
        x, y = (place // factor for place in event.index)
        return (x, y), *show(path, name, (x, y))

    explain_at.__annotations__["event"] = gr.SelectData  # by which gradio knows what to hand over

    def render() -> str:
        seed = random.randrange(10**6)
        target = folder / f"scene-{seed}.png"
        Image.fromarray(render_scene(seed)[0]).save(target)
        return str(target)

    with gr.Blocks(title="ddsm-zoo", analytics_enabled=False, fill_width=True, delete_cache=(3600, 3600)) as page:
        at, factor = gr.State(), gr.State(1)
        with gr.Row():
            with gr.Column(scale=5, min_width=240):
                gr.HTML("<h1>ddsm-zoo</h1><p>Semantic segmentation with the Dynamic Dual Sampling Module</p>")
                model = gr.Dropdown(list(names), value=chosen, label="Model", elem_id="model")
                file = gr.File(label="Picture", height=130, elem_id="file")
                with gr.Row():
                    sample = gr.Button("Sample street", size="sm", min_width=80)
                    scene = gr.Button("Render a street", size="sm", min_width=80)
                classes = gr.HTML(elem_id="classes")
            with gr.Column(scale=11, min_width=400):
                picture = gr.Image(
                    format="png",
                    show_label=False,
                    alt_text="The picture under the colours of its classes",
                    interactive=False,
                    buttons=["download", "fullscreen"],
                    elem_id="picture",
                )
                caption = gr.HTML(f"<p>{EMPTY}</p>", elem_id="caption")
            with gr.Column(scale=6, min_width=280):
                samples = gr.HTML(f"<p>{HINT}</p>", elem_id="samples")
        shown = [picture, caption, classes, samples, factor]
        private = {"api_visibility": "private"}
        turn = {"concurrency_id": "model", "concurrency_limit": 1, **private}
        sample.click(lambda: str(SAMPLE), outputs=file, **private)
        scene.click(render, outputs=file, **private)
        file.change(begin, [file, model], [at, *shown], **turn)
        model.change(show, [file, model, at], shown, **turn)
        picture.select(explain_at, [file, model, factor], [at, *shown], **turn)
    return page


def serve(page: Any, listener: socket.socket) -> None:
    """Show a page to whoever connects to ``listener``, until Ctrl-C or SIGTERM. No other server is asked anything."""
    import uvicorn
    from fastapi import FastAPI

    gr = find_gradio()
    app = gr.mount_gradio_app(
        FastAPI(openapi_url=None),
        page,
        path="/",
        footer_links=[],
        run_history=False,
        allowed_paths=[str(SAMPLE)],
        max_file_size=UPLOAD,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
        css=CSS,
    )
    config = uvicorn.Config(_with_policy(app), log_level="warning", timeout_graceful_shutdown=1)
    with interruptible():  # uvicorn stops at a signal and then sends it once more
        uvicorn.Server(config).run(sockets=[listener])


def _with_policy(app: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    """An ASGI application whose answers carry `POLICY`."""

    async def answer(scope: Any, receive: Any, send: Send) -> None:
        async def send_with_policy(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"content-security-policy", POLICY)]
            await send(message)

        await app(scope, receive, send_with_policy if scope["type"] == "http" else send)

    return answer


def _is_here(name: str) -> bool:
    """Whether the weights of a model can be had without network."""
    weights = None if is_uri(name) else find(name).weights
    return (name if weights is None else weights.uri).startswith(("bundled:", "local-dir:"))


def _draw_cross(picture: Image.Image, at: Pixel) -> None:
    pen = ImageDraw.Draw(picture)
    x, y = at
    reach = max(picture.size) // 50 + 3
    for color, width in ((WHITE, reach // 2), (BLUE, reach // 5 + 1)):
        pen.line([x - reach, y, x + reach, y], color, width)
        pen.line([x, y - reach, x, y + reach], color, width)


def _data_address(picture: Image.Image) -> str:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=88)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
