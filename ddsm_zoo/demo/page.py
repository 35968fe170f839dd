"""Web page to try models on: upload a picture, see its classes, click a pixel to see the positions DDSM samples."""

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
from ddsm_zoo.errors import PackageError, UserError
from ddsm_zoo.explain.explain import Explanation, Level, explain
from ddsm_zoo.hub.address import is_uri
from ddsm_zoo.inference.predictor import Predictor, Segmentation
from ddsm_zoo.utils.signals import interruptible
from ddsm_zoo.utils.visualize import BLACK, WHITE
from ddsm_zoo.zoo.registry import find, list_pretrained

Pixel = tuple[int, int]
Send = Callable[[Any], Awaitable[None]]

SAMPLE = Path(__file__).parents[1] / "data" / "sample" / "street.png"
SIDE = 1600  # pixels: larger pictures are reduced, because no screen shows more and the answer must come soon
SHOWN = 960  # pixels: smaller pictures are enlarged to it or more, as gradio misreads clicks if the page enlarges them
UPLOAD = "64mb"  # maximum file size

PANEL = (640, 400)  # size of the picture of a module's samples, twice its displayed size
MARGIN = 1.25  # extent of that picture relative to the farthest sample
RED, BLUE, GRAY = (214, 30, 40), (20, 60, 230), (225, 225, 225)

# A browser may fetch only from this server, even if gradio asks for other addresses
POLICY = b"default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'"
CSS = (Path(__file__).parent / "page.css").read_text(encoding="utf-8")
HINT = "Click a pixel of the image to see which positions DDSM samples for it."
READING = "Each module reads at its crosses. The larger the disc, the more it counts."
EMPTY = "Drop an image on the left, or take one of the rendered streets."


@dataclass(frozen=True, kw_only=True)
class View:
    """Content of the page for one picture.

    Attributes:
        name: File name of the picture.
        size: Size (W, H) of the file in pixels.
        result: Prediction for the picture, which may have been reduced.
        at: Clicked pixel (x, y) of the labeled picture, None before a click.
        explanation: Explanation of the pixel, None if there is none.
        note: Reason why there is no explanation.
    """

    name: str
    size: tuple[int, int]
    result: Segmentation
    at: Pixel | None = None
    explanation: Explanation | None = None
    note: str = HINT

    @property
    def factor(self) -> int:
        """Number of displayed pixels per labeled pixel and side."""
        return -(-SHOWN // max(self.result.image.size))

    def picture(self) -> Image.Image:
        """Return the overlay, enlarged by `factor`, with a cross on the pixel ``at``."""
        overlay, factor = self.result.overlay(legend=False), self.factor
        overlay = overlay.resize((factor * overlay.width, factor * overlay.height), Image.Resampling.NEAREST)
        if self.at is not None:
            x, y = self.at
            _draw_cross(overlay, (factor * x + factor // 2, factor * y + factor // 2))
        return overlay

    def caption(self) -> str:
        """Return one line of HTML."""
        sizes = [self.size, self.result.image.size]
        texts = [f"{width} x {height} pixels" for width, height in dict.fromkeys(sizes)]
        return f"<p>{escape(self.name)}: {', labeled at '.join(texts)}</p>"

    def classes(self) -> str:
        """Return the legend as HTML: color, name and share of each class present, the largest first."""
        colors = dict(zip(self.result.labels.names, self.result.overlay_labels.palette, strict=True))
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
        """Return the sampled positions of each module as HTML with a picture each, or the note."""
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
    """Label a picture file, reduced to sides of at most `SIDE`, and explain one pixel.

    ``at`` (x, y) is a pixel of the reduced picture. Raises FileNotFoundError, ImageError, which names the file without
    its folder, and the errors of the predictor.
    """
    try:
        picture = read_image(path)
    except ImageError as error:
        raise ImageError(str(error).replace(str(path), path.name), kind=error.kind, name=path.name) from error
    size = picture.size
    picture.thumbnail((SIDE, SIDE))
    if at is None:
        return View(name=path.name, size=size, result=predictor(picture))
    try:
        explanation = explain(predictor, picture, at)
    except ValueError as error:  # a model without sampling still predicts classes
        return View(name=path.name, size=size, result=predictor(picture), at=at, note=str(error))
    return View(name=path.name, size=size, result=explanation.result, at=at, explanation=explanation)


def draw_samples(image: Image.Image, level: Level) -> Image.Image:
    """Draw the taps of a module around the pixel's cell: a cross in a disc whose area is the tap's affinity.

    The largest affinities are written next to their taps. The picture has the size `PANEL` and shows all positions. The
    area beyond the image is gray.
    """
    width, height = PANEL
    center = np.asarray(level.center)
    half_width, half_height = np.maximum(MARGIN * np.abs(level.positions - center).max(0), 3 * level.pitch)
    scale = min(width / half_width, height / half_height) / 2
    left, top = center + 0.5 - np.asarray(PANEL) / scale / 2  # of the window, relative to the corner of the image
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
    """Return the models to choose from: the given ones and all published ones, those that need no network first.

    Raises UnknownModelError for a given name that is unknown.
    """
    return sorted(dict.fromkeys((*given, *list_pretrained())), key=lambda name: not _is_here(name))


class PortError(UserError, OSError):
    """Address that the page cannot listen on."""

    kind = "port"


def listen(host: str, port: int) -> socket.socket:
    """Open a listening socket. Port 0 takes any free port. Raises OSError with one line."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        reason = str(error.strerror).partition(" (while")[0]  # Python repeats the address there
        raise PortError(
            f"cannot listen on {host}:{port}: {reason}; choose others with --host and --port", got=port
        ) from error


def address(listener: socket.socket) -> str:
    """Return the URL of the listening socket for a browser."""
    host, port, *_ = listener.getsockname()
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def find_gradio() -> Any:
    """Return the package gradio. Raises LookupError if it is not installed."""
    try:
        import gradio
    except ModuleNotFoundError as error:
        raise PackageError.needed("the page needs", "gradio", "demo") from error
    return gradio


def build_page(names: Sequence[str], chosen: str, load: Callable[[str], Predictor], folder: Path) -> Any:
    """Build the page as gradio's Blocks.

    ``load`` returns the predictor of a name, and pictures are stored in ``folder``. Predictions run one at a time, and
    others wait. Raises LookupError if gradio is not installed.
    """
    os.environ["GRADIO_TEMP_DIR"] = str(folder)  # gradio reads it only from the environment
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

    explain_at.__annotations__["event"] = gr.SelectData  # gradio decides by the annotation which event to pass

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
                file = gr.File(label="Image", height=130, elem_id="file")
                with gr.Row():
                    sample = gr.Button("Sample street", size="sm", min_width=80)
                    scene = gr.Button("Render a street", size="sm", min_width=80)
                classes = gr.HTML(elem_id="classes")
            with gr.Column(scale=11, min_width=400):
                picture = gr.Image(
                    format="png",
                    show_label=False,
                    alt_text="The image under the colors of its classes",
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
    """Serve a page on ``listener`` until Ctrl-C or SIGTERM. No other server is contacted."""
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
    with interruptible():  # uvicorn stops at a signal and then raises it again
        uvicorn.Server(config).run(sockets=[listener])


def _with_policy(app: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    """Wrap an ASGI application so that its responses carry `POLICY`."""

    async def answer(scope: Any, receive: Any, send: Send) -> None:
        async def send_with_policy(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"content-security-policy", POLICY)]
            await send(message)

        await app(scope, receive, send_with_policy if scope["type"] == "http" else send)

    return answer


def _is_here(name: str) -> bool:
    """Return True if the weights of a model are available without network."""
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
