"""The report in a real browser: on a phone, on a desk, on paper. Skipped where no Chromium is installed."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import report_inputs
import stages

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium here (apt install chromium)")

PROBE = """<!DOCTYPE html><body style="margin: 0"><iframe id="page" src="results/report.html"
style="border: 0; width: {width}px; height: 900px"></iframe><pre id="found"></pre><script>
onload = () => {{
  const page = document.getElementById("page").contentDocument, view = page.defaultView;
  const box = element => element.getBoundingClientRect();
  const outside = [...page.querySelectorAll("main *")].filter(element =>
    !element.closest(".scroll, pre, svg, details:not([open])") && box(element).right > view.innerWidth + 1);
  const sizes = [...page.querySelectorAll("p, td, th, li, code, summary")].filter(element => box(element).width)
    .map(element => parseFloat(view.getComputedStyle(element).fontSize));
  document.getElementById("found").textContent = JSON.stringify({{
    width: page.documentElement.scrollWidth, outside: outside.map(element => element.outerHTML.slice(0, 80)),
    smallest: Math.min(...sizes), figures: [...page.querySelectorAll("figure svg")].map(each => box(each).width),
    scrolled: [...page.querySelectorAll(".scroll")].filter(each => each.scrollWidth > each.clientWidth + 1)
      .map(each => each.getAttribute("aria-label")),
    requests: view.performance.getEntriesByType("resource").length,
  }});
}};
</script></body>
"""
"""Measures the page, which has no script of its own, from the page around it."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with results/report.html about two runs."""
    root = tmp_path_factory.mktemp("browser")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        report_inputs.write_upstream()
        for name, rank in (("demo", 16), ("rank-64", 64)):
            report_inputs.write_run(name, rank=rank)
        template = stages.REPOSITORY / "report" / "report.html.j2"
        runs = ["results/runs/demo", "results/runs/rank-64"]
        stages.call("report", "--runs", *runs, "--output", "results/report.html", "--template", template)
    return root


def browser(folder: Path, page: str, *options: str) -> str:
    """What a headless browser without network prints."""
    isolated = [
        "--no-sandbox",
        "--disable-gpu",
        "--host-resolver-rules=MAP * ~NOTFOUND",
        f"--user-data-dir={folder}/user",
    ]
    command = [
        str(BROWSER),
        "--headless",
        *isolated,
        "--allow-file-access-from-files",
        *options,
        f"file://{folder}/{page}",
    ]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout


@pytest.mark.parametrize("width", [360, 1280])
def test_nothing_sticks_out_and_all_can_be_read(folder: Path, width: int) -> None:
    (folder / "probe.html").write_text(PROBE.format(width=width))
    output = browser(folder, "probe.html", "--dump-dom", f"--window-size={max(width, 500)},1000")
    text = re.search('<pre id="found">(.*?)</pre>', output, re.DOTALL)
    assert text
    found = json.loads(text[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
    assert found["outside"] == []
    assert found["width"] <= width
    assert found["smallest"] >= 11
    assert len(found["figures"]) == 9
    assert all(300 <= figure <= width for figure in found["figures"])
    assert found["requests"] == 0
    # Tables that may be wider than a phone: one column a run, one a setting.
    assert set(found["scrolled"]) <= ({"Runs side by side", "Runs by validation loss"} if width < 1000 else set())


def test_it_prints(folder: Path) -> None:
    browser(folder, "results/report.html", f"--print-to-pdf={folder}/report.pdf", "--no-pdf-header-footer")
    content = (folder / "report.pdf").read_bytes()
    assert content.startswith(b"%PDF")
    assert 4 <= len(re.findall(rb"/Type */Page\b", content)) <= 30
