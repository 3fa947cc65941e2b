"""The frame of all pages: one file of HTML that needs no network."""

import base64
import html
import io

import numpy as np
from jaxtyping import UInt8
from PIL import Image

STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1c2430; background: #fff; }
body { max-width: 82rem; margin: 2rem auto; padding: 0 1.2rem; }
h1 { font-size: 1.6rem; margin-bottom: .2rem; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; }
.notice { background: #fff4de; border-left: 4px solid #d98a00; padding: .6rem .9rem; }
table { border-collapse: collapse; }
th, td { padding: .35rem .6rem; text-align: right; vertical-align: top; }
th, td { border-bottom: 1px solid #dfe4ea; }
th:first-child, td:first-child { text-align: left; white-space: nowrap; }
summary { cursor: pointer; padding: .3rem 0; }
.interval { color: #66707d; font-size: .85em; white-space: nowrap; display: block; }
.faces { display: grid; gap: .5rem; overflow-x: auto; }
.faces figure, .curves figure { margin: 0; }
.faces figure { text-align: center; }
.faces img, .sheet { width: 100%; image-rendering: auto; border-radius: 3px; display: block; }
figcaption, .small { font-size: .8rem; color: #66707d; }
.wide { overflow-x: auto; }
.curves { display: flex; flex-wrap: wrap; gap: 1rem; }
.curves img { max-width: 100%; }
.sheets { margin: 0 0 1rem; }
pre { background: #f5f7f9; padding: .8rem; overflow-x: auto; font-size: .8rem; }
"""


def document(title: str, heading: str, body: str) -> str:
    """Returns a page. `title` and `heading` are text, `body` is HTML."""
    viewport = '<meta name=viewport content="width=device-width, initial-scale=1">'
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8>{viewport}\n"
        f"<title>cranio_jax: {html.escape(title)}</title><style>{STYLE}</style>\n"
        f"<h1>{html.escape(heading)}</h1>\n{body}\n</html>\n"
    )


def data_uri(picture: UInt8[np.ndarray, "h w *c"], scale: int = 1) -> str:
    """Returns a picture as a data URI, enlarged smoothly by `scale`."""
    image = Image.fromarray(picture.squeeze(-1) if picture.shape[-1] == 1 else picture)
    image = image.resize((image.width * scale, image.height * scale), Image.Resampling.BICUBIC)
    content = io.BytesIO()
    image.save(content, "PNG")
    return "data:image/png;base64," + base64.b64encode(content.getvalue()).decode()
