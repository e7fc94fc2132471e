"""Start the web app: a page that makes orbits and 3D objects of sentences and pictures.

    python tools/app.py
    python tools/app.py --cfg configs/mini/t2v_infer.yaml --cfg configs/mini/i2v_infer.yaml --mcp

opens a page on this machine, http://127.0.0.1:7860. Without --cfg it uses the small model for real objects. It needs
one package more (`python -m pip install "gradio[mcp]"`). tools/web/README.md describes the page and its endpoints.
"""

from __future__ import annotations

import argparse
import atexit
import ipaddress
import logging
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import pipelines  # noqa: F401 - registers
from utils.errors import ConfigError, first_line
from utils.files import writable_folder
from utils.script import run_script

if TYPE_CHECKING:
    import gradio as gr

log = logging.getLogger(__name__)

DEFAULT_CFG = "configs/mini/real_infer.yaml"
PORT = 7860
INSTALL = 'python -m pip install "gradio[mcp]>=6.31,<7"'
NEEDED = f"the web app needs gradio; install it with `{INSTALL}`"


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--cfg", action="append", help=f"configuration to load; may be repeated (default {DEFAULT_CFG})"
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0: all (default 127.0.0.1)")
    parser.add_argument("--port", type=int, default=PORT, help=f"port (default {PORT})")
    parser.add_argument("--share", action="store_true", help="a public address through gradio.live; needs --password")
    parser.add_argument("--user", default="videomv", help="name for the login (default videomv)")
    parser.add_argument("--password", help="ask visitors for a password; $VIDEOMV_PASSWORD hides it from `ps`")
    parser.add_argument("--mcp", action="store_true", help="offer the endpoints as MCP tools, at /gradio_api/mcp/")
    parser.add_argument("--keep-minutes", type=float, default=120, help="results of idle visitors stay (default 120)")
    parser.add_argument("--folder", type=Path, help="folder for results while the app runs (default: temporary)")
    return parser.parse_args(argv)


def check_options(options: argparse.Namespace) -> None:
    """Check options that would show their fault only after the models are loaded.

    Raises:
        ConfigError: an option is out of range, or two exclude each other.
    """
    options.password = options.password or os.environ.get("VIDEOMV_PASSWORD")
    if options.share and not options.password:
        raise ConfigError("--share makes the app public; add --password (and --user)")
    if options.mcp and options.password:
        raise ConfigError("--mcp has no login of its own; leave out --mcp or --password")
    if not 0 < options.port < 65536:
        raise ConfigError(f"--port must lie in [1, 65535], got {options.port}")
    if not 1 <= options.keep_minutes <= 60 * 24 * 7:
        raise ConfigError(f"--keep-minutes must lie in [1, {60 * 24 * 7}], got {options.keep_minutes:g}")
    if options.host != "localhost":
        try:
            ipaddress.ip_address(options.host)
        except ValueError as err:
            raise ConfigError(f"--host {options.host} is not an address; use 127.0.0.1 or 0.0.0.0") from err


def check_gradio() -> None:
    """Check that the optional package is installed.

    Raises:
        ConfigError: it is not; the message has the command that installs it.
    """
    try:
        import gradio  # noqa: F401
    except ImportError as err:
        raise ConfigError(NEEDED) from err


def build_app(
    cfgs: list[str] | None = None, *, folder: Path | None = None, keep_minutes: float = 120
) -> tuple[gr.Blocks, dict[str, Any]]:
    """Load the models and build the page and the endpoints.

    Args:
        cfgs: configuration files; the first is the default.
        folder: for results, a new subfolder of which belongs to this app; None: a temporary one. It is removed at exit.
        keep_minutes: results of visitors who do nothing stay this long.

    Returns:
        The app, and the options that its `launch` needs: `app.launch(**options)`.

    Raises:
        ConfigError, DataError: gradio is not installed, or a configuration cannot be used.
    """
    check_gradio()
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # nothing about visitors is sent anywhere
    import gradio as gr

    from tools.web import show
    from tools.web.endpoints import build_endpoints
    from tools.web.jobs import Worker
    from tools.web.models import load_models
    from tools.web.page import build_page
    from tools.web.service import Service
    from tools.web.uploads import LARGEST_FILE_MB
    from tools.web.visits import Visits

    models = load_models(cfgs or [DEFAULT_CFG])
    root = Path(tempfile.mkdtemp(prefix="videomv_app_", dir=folder)).resolve()
    os.environ["GRADIO_TEMP_DIR"] = str(root / "uploads")
    results = root / "visits"
    results.mkdir()
    worker = Worker()
    visits = Visits(results, worker=worker, max_age_s=60 * keep_minutes)
    atexit.register(close, visits, worker, root)
    gr.set_static_paths([results])  # served as they are, instead of being copied for each visitor
    service = Service(models, visits=visits, worker=worker)
    age_s = int(60 * keep_minutes)
    with gr.Blocks(title="VideoMV", analytics_enabled=False, delete_cache=(600, age_s)) as app:
        build_page(app, service)
        build_endpoints(service)
    app.queue(default_concurrency_limit=None)
    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}  # none is downloaded
    theme = gr.themes.Soft(primary_hue="blue", neutral_hue="slate", **fonts)
    launch = {"theme": theme, "css": show.STYLE, "max_file_size": f"{LARGEST_FILE_MB}mb", "footer_links": ["api"]}
    return app, launch | {"show_error": True, "ssr_mode": False, "quiet": True}


def close(visits: Any, worker: Any, root: Path) -> None:
    """Stop the work and remove the files of all visitors."""
    worker.close()
    visits.close()
    shutil.rmtree(root, ignore_errors=True)


def main(argv: list[str] | None = None) -> int:
    options = parse_args(argv)
    check_options(options)
    folder = None if options.folder is None else writable_folder(options.folder, option="--folder")
    app, launch = build_app(options.cfg, folder=folder, keep_minutes=options.keep_minutes)
    if options.host not in ("127.0.0.1", "::1", "localhost") and not options.password:
        log.warning("--host %s: everyone who reaches this machine can use the app; --password asks them", options.host)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # so that the files of visitors are removed
    launch["auth"] = (options.user, options.password) if options.password else None
    try:
        _, local, public = app.launch(
            server_name=options.host, server_port=options.port, share=options.share, mcp_server=options.mcp,
            prevent_thread_lock=True, **launch,
        )  # fmt: skip
    except OSError as err:
        raise ConfigError(f"--port {options.port} cannot be used ({first_line(err)}); choose another") from err
    if options.mcp and not app.mcp_server:  # Gradio itself only notes why
        raise ConfigError(f"--mcp cannot start ({app.mcp_error}); install what fits with `{INSTALL}`")
    print(f"open {public or local}", flush=True)
    app.block_thread()
    return 0


if __name__ == "__main__":
    run_script(main)
