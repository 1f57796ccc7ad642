"""The page in a real browser (Debian's Chromium), which may talk to this machine alone and must not complain of anything."""

import shutil

import pytest

from tests.serve.conftest import png

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here; `apt-get install chromium` brings it")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser, server):
    context = browser.new_context(viewport={"width": 1180, "height": 900})
    page, complaints = context.new_page(), []
    page.on("console", lambda m: complaints.append(m.text) if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda e: complaints.append(str(e)))
    page.on("dialog", lambda d: (complaints.append(d.message), d.dismiss()))
    context.route("**", lambda route: route.continue_() if route.request.url.startswith((server.url, "blob:", "data:")) else route.abort())
    page.goto(server.url)
    page.get_by_test_id("served").get_by_text("version folder").wait_for()
    yield page
    context.close()
    assert complaints == []


def give(page, data=None):
    page.get_by_test_id("file").set_input_files({"name": "x.png", "mimeType": "image/png", "buffer": data or png()})


def edited(page):
    page.get_by_test_id("up").wait_for(timeout=60_000)


def test_a_picture_is_edited_judged_and_compared(page, server):
    give(page)
    page.get_by_role("button", name="winter").click()  # one click edits
    edited(page)
    assert page.get_by_test_id("instruction").input_value() == "make it winter"
    drawn = page.get_by_test_id("seed").input_value
    page.get_by_role("group").get_by_text("Settings").click()
    assert drawn().isdecimal()  # the drawn seed is written back
    page.get_by_test_id("down").click()
    page.get_by_test_id("reason").select_option("preservation")
    first = drawn()
    page.get_by_test_id("go").click()  # the same again gives another to choose from
    page.get_by_test_id("choice").wait_for(timeout=60_000)
    assert drawn() != first
    page.get_by_test_id("first").click()
    page.get_by_test_id("choice").wait_for(state="hidden")
    votes = sorted((v.kind, v.value, v.reason) for v in server.desk.history.votes()[-2:])
    assert votes == [("pair", 1, None), ("thumb", -1, "preservation")]
    # the history opens an edit again; its result can be edited further, and downloaded
    page.get_by_test_id("history").get_by_role("button").first.click()
    edited(page)
    with page.expect_download() as download:
        page.get_by_test_id("download").click()
    assert download.value.suggested_filename == "edit.png"
    page.get_by_test_id("again").click()
    page.get_by_test_id("after").wait_for(state="hidden")


def test_the_keyboard_is_enough(page):
    page.bring_to_front()  # without the window's focus keys go nowhere
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "drop"
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    chooser.value.set_files({"name": "x.png", "mimeType": "image/png", "buffer": png()})
    page.keyboard.type("make it night")
    page.keyboard.press("Enter")
    edited(page)
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "up":
            break
    page.keyboard.press("Enter")
    page.get_by_test_id("reason").wait_for()
    assert page.get_by_test_id("up").get_attribute("aria-pressed") == "true"


def test_an_edit_can_be_stopped(page):
    give(page)
    page.get_by_role("group").get_by_text("Settings").click()
    page.locator("#steps").fill("100")
    page.get_by_test_id("instruction").fill("make it winter")
    page.get_by_test_id("go").click()
    page.get_by_test_id("cancel").click()
    page.get_by_test_id("progress").wait_for(state="hidden")
    page.get_by_test_id("after").wait_for(state="hidden")


def test_what_goes_wrong_is_said(page):
    page.get_by_test_id("go").click()
    assert page.get_by_test_id("message").text_content() == "Choose a picture first."
    give(page)
    page.get_by_test_id("go").click()
    assert page.get_by_test_id("message").text_content() == "Say what should change."


def test_a_stored_script_is_text(page, server):
    server.edit(instruction="<img src=x onerror=alert(1)><script>alert(2)</script>")
    page.reload()
    page.get_by_test_id("history").get_by_text("<img src=x onerror=alert(1)>").first.wait_for()


def test_on_a_phone_nothing_is_cut_off(page):
    page.set_viewport_size({"width": 360, "height": 740})
    give(page)
    page.get_by_role("button", name="night").click()
    edited(page)
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
