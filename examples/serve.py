"""Segmentation server in one file: send an image, get its mask as a PNG or the share of each class as JSON.

pip install ddsm-zoo fastapi uvicorn
uvicorn serve:app                                     # in this folder; MODEL=local-dir:runs/mine/best for your own
curl --data-binary @street.jpg localhost:8000/mask -o mask.png
curl --data-binary @street.jpg localhost:8000/shares
"""

from __future__ import annotations

import io
import os
import threading

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.concurrency import run_in_threadpool
from PIL import Image, ImageOps, UnidentifiedImageError

import ddsm_zoo

MODEL = os.environ.get("MODEL", "uper_ddsm_lite0_camvid")
MAX_BYTES = 32 * 2**20  # of an upload
MAX_PIXELS = 24_000_000  # of an image, so that a small file cannot ask for all of the memory

predictor = ddsm_zoo.Predictor(MODEL)
one_at_a_time = threading.Lock()  # one prediction already uses every core, several would need several times the memory
app = FastAPI(title=f"ddsm-zoo: {MODEL}")


async def read_upload(request: Request) -> Image.Image:
    """Decode the request's body. Raises HTTPException 413 if it is too large and 415 if it is no image."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BYTES:
            raise HTTPException(413, f"the upload has more than {MAX_BYTES >> 20} MiB")
    try:
        image = Image.open(io.BytesIO(body))
        if image.width * image.height > MAX_PIXELS:
            raise HTTPException(
                413, f"the image has {image.width} x {image.height} pixels, expected at most {MAX_PIXELS}"
            )
        return ImageOps.exif_transpose(image)
    except Image.DecompressionBombError as error:
        raise HTTPException(413, f"the image is too large, expected at most {MAX_PIXELS} pixels") from error
    except UnidentifiedImageError as error:
        hint = "send the bytes of an image file as the body, not a form: curl --data-binary @FILE"
        raise HTTPException(415, f"got {len(body)} bytes that are no image; {hint}") from error
    except (OSError, SyntaxError) as error:
        raise HTTPException(415, f"the image is damaged: {error}") from error


def segment(image: Image.Image) -> ddsm_zoo.Segmentation:
    with one_at_a_time:
        return predictor(image)


@app.post("/mask")
async def mask(request: Request) -> Response:
    """Return the class ids of the image as a PNG of its size."""
    result = await run_in_threadpool(segment, await read_upload(request))
    png = io.BytesIO()
    Image.fromarray(result.mask).save(png, "png")
    return Response(png.getvalue(), media_type="image/png")


@app.post("/shares")
async def shares(request: Request) -> dict[str, float]:
    """Return the share of the image that each class takes, 0 to 1."""
    return (await run_in_threadpool(segment, await read_upload(request))).shares()


@app.get("/labels")
def labels() -> list[str]:
    """Return the class names, in the order of the ids."""
    return list(predictor.labels.names)
