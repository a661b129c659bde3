"""A page in a real browser that has no network."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.webdriver.chrome.service import Service

BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)

# Every text that is shown, with its colour, and the colour of what lies behind it.
COLOURS = """
const behind = e => {
  for (; e; e = e.parentElement) {
    const c = getComputedStyle(e).backgroundColor;
    if (!/, 0\\)$|transparent/.test(c)) return c;
  }
  return "rgb(255, 255, 255)";
};
const found = [];
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const text = walker.currentNode.textContent.trim(), e = walker.currentNode.parentElement;
  if (!text || !e.getClientRects().length || e.tagName === "title") continue;
  const style = getComputedStyle(e), drawn = e instanceof SVGElement;
  found.push([text, drawn ? style.fill : style.color, behind(e)]);
}
return found;
"""

# Drawn texts of one panel that lie over one another.
OVERLAPS = """
const found = [];
for (const panel of document.querySelectorAll(".panel > svg")) {
  const texts = [...panel.querySelectorAll("text")];
  const boxes = texts.map(t => [t.textContent, t.getBoundingClientRect()]);
  boxes.forEach(([a, p], i) => boxes.slice(i + 1).forEach(([b, q]) => {
    const beside = p.left >= q.right - 1 || q.left >= p.right - 1;
    const apart = p.top >= q.bottom - 3 || q.top >= p.bottom - 3;
    if (!beside && !apart) found.push([a, b]);
  }));
}
return found;
"""


class Page:
    """A page that is open."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver

    def emulate(self, width: int, scheme: str) -> None:
        """A window this wide, for a reader who prefers light or dark."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)

    def ask(self, script: str) -> Any:
        return self.driver.execute_script(script)

    def pdf(self) -> str:
        """What is printed, in base64."""
        return str(self.driver.execute_cdp_cmd("Page.printToPDF", {})["data"])

    def requests(self) -> list[str]:
        """The addresses that were asked for since the page was."""
        entries = [json.loads(e["message"])["message"] for e in self.driver.get_log("performance")]
        sent = [e["params"] for e in entries if e["method"] == "Network.requestWillBeSent"]
        return [s["request"]["url"] for s in sent]

    def complaints(self) -> list[Any]:
        """What is on the console."""
        return list(self.driver.get_log("browser"))


@contextmanager
def opened(path: Path, profile: Path) -> Iterator[Page]:
    """The page in a browser of its own, with a fresh profile."""
    options = webdriver.ChromeOptions()
    options.binary_location = str(BROWSER)
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(str(DRIVER)))
    try:
        driver.get("about:blank")  # away from the browser's own first page, which asks for things
        driver.get_log("performance")
        driver.get(path.as_uri())
        yield Page(driver)
    finally:
        driver.quit()
