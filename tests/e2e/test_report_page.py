"""A comparison's page in a real browser, without a network."""

import shutil
from collections.abc import Callable

import pytest

from hf_effpt.comparison.page import write_page
from tests.unit.comparison.example_report import (
    example_report,
    with_divergence,
    with_many_arms,
    with_objectives,
    without_energy,
)

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium or Chrome")

CHARTS = ("losses", "differences", "by_budget")
HOSTILE = '<b>x</b> & "y"'
TRACES = """id => document.getElementById(id).data.map(
    trace => ({group: trace.legendgroup, visible: trace.visible !== false, x: Array.from(trace.x)}))"""


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser, tmp_path) -> Callable:
    """Opens the page of a report; afterwards the test fails for anything fetched and anything said on the console."""
    wrong, contexts = [], []

    def open_page(report, width=1280, scheme="light"):
        path = tmp_path / "report.html"
        write_page(report, path)
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        contexts.append(context)
        context.set_offline(True)
        page = context.new_page()
        page.on("console", lambda message: wrong.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: wrong.append(f"error: {error}"))
        allowed = (path.as_uri(), "data:", "blob:")
        page.on("request", lambda it: None if it.url.startswith(allowed) else wrong.append(f"request: {it.url}"))
        page.goto(path.as_uri())
        page.wait_for_selector("#losses .main-svg")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert wrong == []


def legend(page, name):
    return page.locator(".legend").get_by_role("button", name=name, exact=True)


def axis_title(page):
    return page.locator("#losses .xtitle").text_content()


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (420, "dark")])
def test_charts_and_verdicts_are_seen(open_page, tmp_path, width, scheme):
    report = example_report()
    page = open_page(report, width, scheme)
    for chart in CHARTS:
        assert page.locator(f"#{chart} .scatterlayer .trace").count() > 1, chart
    for arm in report["arms"]:
        assert page.get_by_text(arm["verdict"]["text"]).is_visible()
    assert page.locator(".verdict .label", has_text="better").is_visible()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.screenshot(path=tmp_path / "page.png", full_page=True)
    assert (tmp_path / "page.png").stat().st_size > 20_000


@pytest.mark.parametrize("width", [1366, 390])
def test_eleven_arms_are_told_apart(open_page, width):
    report = with_many_arms(11)
    page = open_page(report, width)
    names = [arm["name"] for arm in report["arms"]]
    numbered = [f"{number} {name}" for number, name in enumerate(names, start=1)]
    assert page.locator(".legend button").all_text_contents() == numbered
    told = page.locator("#losses .annotation-text").all_text_contents()[1:]  # after the floor
    assert sorted(told) == sorted(names if width > 700 else [str(number) for number in range(1, 12)])
    rows = page.locator("#differences .yaxislayer-above text, #differences .annotation-text").all_text_contents()
    assert set(names[1:]) <= set(rows)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.locator("#budgets_section").is_hidden()  # one budget has no axis
    assert "thin lines single seeds" not in page.locator("figcaption").first.inner_text()
    means = page.locator("#losses .scatterlayer .trace").count()
    for button in page.locator(".legend button").all()[6:]:
        button.click()
    assert page.locator("#losses .annotation-text").count() == 1 + 6
    assert "thin lines single seeds" in page.locator("figcaption").first.inner_text()
    assert means == 2 * 11  # and their ends
    assert page.locator("#losses .scatterlayer .trace").count() > 2 * 6


def test_one_legend_entry_hides_all_traces_of_its_arm(open_page):
    page = open_page(example_report())
    legend(page, "stacking").click()
    assert legend(page, "stacking").get_attribute("aria-pressed") == "false"
    for chart in CHARTS:
        traces = page.evaluate(TRACES, chart)
        assert len({trace["group"] for trace in traces}) >= 2
        assert all(trace["visible"] == (trace["group"] != "1") for trace in traces), chart
    hidden = page.locator("#losses .scatterlayer .trace").count()
    legend(page, "stacking").click()
    assert all(trace["visible"] for trace in page.evaluate(TRACES, "losses"))
    assert page.locator("#losses .scatterlayer .trace").count() > hidden


def test_the_axis_switches(open_page):
    report = example_report()
    page = open_page(report)
    for button, title, key in (
        ("Tokens", "Tokens", "tokens"),
        ("FLOPs", "FLOPs", "flops"),
        ("kWh, estimated", "Energy (kWh, estimated)", "kwh"),
        ("Time", "Time (s)", "seconds"),
    ):
        pressed = page.get_by_role("button", name=button, exact=True)
        pressed.click()
        assert pressed.get_attribute("aria-pressed") == "true"
        assert page.locator(".axes [aria-pressed=true]").count() == 1
        assert axis_title(page) == title
        run = next(run for run in report["arms"][0]["runs"] if run["fraction"] == 1.0)
        expected = [point[key] for point in run["curve"]]
        assert any(trace["x"] == pytest.approx(expected) for trace in page.evaluate(TRACES, "losses"))


def test_the_axis_becomes_logarithmic(open_page):
    page = open_page(example_report())
    page.get_by_role("button", name="Log", exact=True).click()
    assert page.evaluate("document.getElementById('losses').layout.xaxis.type") == "log"


def test_the_clock_is_the_first_axis(open_page):
    report = example_report()
    report["clock"] = {"unit": "tokens", "budget": 5e6, "text": "5e6tokens"}
    assert axis_title(open_page(report)) == "Tokens"


def test_without_energy_its_button_is_disabled_and_says_why(open_page):
    button = open_page(without_energy()).get_by_role("button", name="kWh", exact=True)
    assert button.is_disabled()
    assert button.get_attribute("title") == "The energy of these runs is not known."


def test_hostile_names_are_shown_as_they_are(open_page):
    report = with_divergence()
    report["arms"][1]["name"] = HOSTILE
    page = open_page(report, 420)
    assert legend(page, HOSTILE).is_visible()
    assert page.locator("#differences .yaxislayer-above text").first.text_content() == HOSTILE
    page.locator("#differences").scroll_into_view_if_needed()
    drag = page.locator("#differences .nsewdrag").bounding_box()
    mean = page.locator("#differences .scatterlayer .trace .point").nth(3).bounding_box()
    assert drag["width"] > 200
    page.mouse.move(mean["x"] + mean["width"] / 2, mean["y"] + mean["height"] / 2)
    page.wait_for_selector("#differences .hovertext")
    assert HOSTILE in page.locator("#differences .hovertext").first.text_content()
    assert page.locator("b").count() == 0


def test_a_report_of_failures_still_opens(open_page):
    report = without_energy()
    for arm in report["arms"]:
        arm["difference"] = arm["summary"]["final_loss"] = arm["summary"]["budget_to_baseline_loss"] = None
        for run in arm["runs"]:
            run |= {"state": "failed", "held_out_loss": None, "curve": [], "scores": {}}
    page = open_page(report)
    assert page.locator(".axes button:not([disabled])").count() == 0


def test_another_objective_is_drawn_by_itself(open_page):
    page = open_page(with_objectives())
    groups = "id => [...new Set(document.getElementById(id).data.map(trace => trace.legendgroup))]"
    for chart in ("losses", "by_budget"):
        assert page.evaluate(groups, chart) == ["0", "1"]
    page.get_by_role("button", name="electra, per token", exact=True).click()
    for chart in ("losses", "by_budget"):
        assert page.evaluate(groups, chart) == ["2"]
    assert page.locator("#losses .annotation", has_text="prior entropy 0.4254").count() == 1
    assert page.locator("#by_budget .shapelayer path").count() == 0  # the baseline's loss is no target here
    assert page.locator("#differences .annotation", has_text="another objective").count() == 1


def test_one_objective_needs_no_choice(open_page):
    assert open_page(example_report()).locator(".groups button").count() == 0
