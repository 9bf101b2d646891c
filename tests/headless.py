"""Pages in a real browser without a window: what tests of pages share."""

import re
import shutil
import subprocess

import pytest

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr")
needed = pytest.mark.skipif(not BROWSER, reason="no Chromium is installed")
# Colour schemes by Chromium's numbers, light and dark, with the pages' background in each.
schemes = pytest.mark.parametrize(("scheme", "back"), [(1, "255, 255, 255"), (0, "18, 21, 26")])
# The page at both widths, each beside a script that asks what sticks out of it.
_FRAMES = """<!doctype html><body><script>
onload = () => { for (const frame of document.querySelectorAll("iframe")) {
  const page = frame.contentDocument, root = page.documentElement
  const beside = [...page.querySelectorAll("body *")].filter(e => !e.closest(".scroll, pre, svg")
    && e.getBoundingClientRect().right > root.clientWidth + 1)
  const colour = frame.contentWindow.getComputedStyle(page.body).backgroundColor
  const fetched = frame.contentWindow.performance.getEntriesByType("resource").length
  const over = root.scrollWidth - root.clientWidth
  document.body.append(`[${frame.width} ${over} ${beside.length} ${fetched} ${colour}]`) } }
</script>
<iframe width="1280" height="900" frameborder="0" src="PAGE"></iframe>
<iframe width="390" height="800" frameborder="0" src="PAGE"></iframe>"""


def assert_fits(page, folder, scheme, back):
    """A page on a screen and on a phone: silent, whole, nothing beside it, nothing fetched.

    `page`: its file. `folder`: for what the browser writes. `back`: the background, "r, g, b".
    """
    frames = folder / "frames.html"
    frames.write_text(_FRAMES.replace("PAGE", page.as_uri()))
    ran = subprocess.run(
        [
            BROWSER,
            *FLAGS,
            "--allow-file-access-from-files",
            f"--blink-settings=preferredColorScheme={scheme}",
            f"--user-data-dir={folder / 'profile'}",
            "--virtual-time-budget=5000",
            "--dump-dom",
            frames.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    assert "CONSOLE" not in ran.stderr
    found = re.findall(r"\[(\d+) (\d+) (\d+) (\d+) rgb\((.*?)\)\]", ran.stdout)
    assert found == [(width, "0", "0", "0", back) for width in ("1280", "390")]
