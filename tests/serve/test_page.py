"""The page in a real browser (Debian's Chromium), which may talk to this machine alone and must not complain of anything."""

import re
import shutil
import time
from dataclasses import replace
from io import BytesIO

import httpx
import pytest
from PIL import Image
from playwright.sync_api import expect, sync_playwright

from ip2p.serve import api, jobs
from tests.serve.conftest import png, ready, running, serving
from tests.services import until

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here; `apt-get install chromium` brings it")
expect.set_options(timeout=30_000)  # beside another process that trains
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
    until(lambda: page.get_by_test_id("before").evaluate("picture => picture.naturalWidth") > 0)


def edited(page):
    page.get_by_test_id("up").wait_for(timeout=60_000)


def test_an_edit_of_another_picture_shows_nothing_over_this_one_and_gets_no_votes_of_it(page, server):
    give(page, png(color="red"))
    page.get_by_role("group").get_by_text("Settings").click()
    page.locator("#steps").fill("100")
    page.get_by_test_id("instruction").fill("make it night")
    page.get_by_test_id("instruction").press("Enter")
    expect(page.get_by_test_id("progress")).to_be_visible()
    give(page, png(color="blue"))  # meanwhile
    expect(page.get_by_test_id("progress")).to_be_hidden(timeout=60_000)
    expect(page.get_by_test_id("after")).to_be_hidden()
    expect(page.get_by_test_id("up")).to_be_hidden()
    assert newest(server).instruction == "make it night"


def test_a_picture_is_edited_judged_and_compared(page, server):
    give(page)
    page.locator("#clicks").get_by_role("button", name="winter").click()  # one click edits
    edited(page)
    expect(page.get_by_test_id("instruction")).to_have_value("make it winter")
    page.get_by_role("group").get_by_text("Settings").click()
    seed = page.get_by_test_id("seed")
    expect(seed).to_have_value(re.compile(r"\d+"))  # the drawn seed is written back
    page.get_by_test_id("down").click()
    page.get_by_test_id("reason").select_option("preservation")
    first = seed.input_value()
    page.get_by_test_id("go").click()  # the same again gives another to choose from
    page.get_by_test_id("choice").wait_for(timeout=60_000)
    expect(seed).not_to_have_value(first)
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


def test_an_open_page_edits_with_the_champion_of_the_day(page, server, monkeypatch):
    monkeypatch.setattr(server.desk.champion, "look", lambda: None)  # which would find the folder's editor again
    monkeypatch.setattr(server.desk.champion, "_served", replace(server.desk.champion.served, version="promoted"))
    give(page)
    page.get_by_role("group").get_by_text("Settings").click()
    page.locator("#steps").fill("5")
    page.locator("#clicks").get_by_role("button", name="winter").click()
    edited(page)
    expect(page.locator("#caption")).to_contain_text("version promoted")
    expect(page.get_by_test_id("served")).to_contain_text("version promoted")
    expect(page.locator("#steps")).to_have_value("5")


def test_a_second_edit_beside_the_champion_is_the_same_edit_whatever_is_typed_meanwhile(page, server, monkeypatch):
    champion = server.desk.champion
    monkeypatch.setattr(champion, "versions", lambda: {"other": (), "folder": ("champion",)})
    monkeypatch.setattr(champion, "version", lambda number: replace(champion.served, version=number))
    page.reload()
    give(page)
    page.get_by_role("group").get_by_text("Settings").click()
    page.get_by_test_id("version").select_option("other")
    page.get_by_test_id("beside").check()
    page.locator("#steps").fill("30")
    page.get_by_test_id("instruction").fill("make it night")
    page.get_by_test_id("go").click()
    expect(page.get_by_test_id("progress")).to_be_visible()
    page.get_by_test_id("instruction").fill("make it winter")
    page.get_by_test_id("choice").wait_for(timeout=60_000)
    one, two = server.desk.history.edits(count=2)
    assert {one.version, two.version} == {"folder", "other"}
    assert (one.instruction, one.seed, one.steps) == (two.instruction, two.seed, two.steps) == ("make it night", one.seed, 30)
    page.get_by_test_id("same").click()
    page.get_by_test_id("choice").wait_for(state="hidden")


def test_an_edit_that_arrives_late_shows_nothing_over_the_next_picture(page):
    held = []
    page.route(re.compile("/picture$"), lambda route: held.append(route))
    give(page, png(color="red"))
    page.get_by_test_id("instruction").fill("make it night")
    with page.expect_request(re.compile("/picture$"), timeout=60_000):
        page.get_by_test_id("go").click()
    give(page, png(color="blue"))
    for route in held:
        route.continue_()
    page.unroute(re.compile("/picture$"))
    expect(page.get_by_test_id("go")).to_be_enabled()
    expect(page.get_by_test_id("up")).to_be_hidden()
    expect(page.get_by_test_id("after")).to_be_hidden()


def test_an_edit_opened_again_is_made_again_with_its_own_settings(page, server):
    server.edit(text_guidance=1.25, image_guidance=0.8, steps=3)
    page.reload()
    page.locator("#history button").first.click()
    edited(page)
    page.get_by_test_id("go").click()
    page.get_by_test_id("choice").wait_for(timeout=60_000)
    made = newest(server)
    assert (made.text_guidance, made.image_guidance, made.steps) == (1.25, 0.8, 3)


def test_only_what_is_painted_is_edited_by_pointer_and_by_keys(page, server, monkeypatch):
    count = len(server.desk.history.edits(count=21))
    give(page)
    page.get_by_test_id("paint").click()
    box = page.get_by_test_id("before").bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + box["height"] * 0.2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + box["height"] * 0.3, steps=3)
    page.mouse.up()
    page.get_by_test_id("instruction").fill("make it winter")
    page.get_by_test_id("go").click()
    edited(page)
    painted = masked(server)
    top, bottom = painted.crop((0, 0, 120, 40)), painted.crop((0, 60, 120, 90))
    assert top.getextrema() == (0, 255) and bottom.getextrema() == (0, 0)
    after = Image.open(BytesIO(httpx.get(f"{server.url}/api/v1/edits/{newest(server).id}/picture").content)).convert("RGB")
    before = Image.open(BytesIO(png())).convert("RGB")
    assert after.crop((0, 60, 120, 90)).tobytes() == before.crop((0, 60, 120, 90)).tobytes()
    assert after.tobytes() != before.tobytes()

    page.get_by_test_id("unpaint").click()
    page.get_by_test_id("paint").click()
    page.get_by_test_id("mask").focus()
    for key in ("ArrowDown", "ArrowDown", "Space", "Shift+ArrowLeft"):
        page.keyboard.press(key)
    page.get_by_test_id("go").click()
    edited(page)
    painted = masked(server)
    assert painted.crop((0, 0, 120, 30)).getextrema() == (0, 0) and painted.getextrema() == (0, 255)

    page.get_by_test_id("unpaint").click()
    page.get_by_test_id("go").click()
    edited(page)
    assert newest(server).mask is None
    expect(page.get_by_test_id("choice")).to_be_hidden()  # the one before was of a part: nothing to compare

    # who opens an edit of a part again edits that part again, and may compare both
    kept = server.desk.history.edits(count=2)[1].mask
    told = api.with_parameters
    monkeypatch.setattr(api, "with_parameters", lambda *a: (time.sleep(1), told(*a))[1])  # before the edit itself is shown
    expect(page.locator("#history button")).to_have_count(count + 3)
    page.locator("#history button").nth(1).click()
    expect(page.get_by_test_id("paint")).to_have_text("Only the painted part is edited")
    page.get_by_test_id("go").click()
    page.get_by_test_id("choice").wait_for(timeout=60_000)
    assert newest(server).mask == kept
    page.locator("#first").click()
    expect(page.get_by_test_id("choice")).to_be_hidden()
    assert server.desk.history.votes()[-1].kind == "pair"


def newest(server):
    return server.desk.history.edits(count=1)[0]


def masked(server):
    """The mask of the newest edit, as the server keeps it."""
    return Image.open(server.desk.history.picture_path(newest(server).mask)).convert("L")


def test_the_keyboard_is_enough(page):
    page.bring_to_front()  # without the window's focus keys go nowhere
    page.on("filechooser", lambda _: None)  # the browser is told at once to hand choosers over; told with the key, it may be too late
    while page.evaluate("document.activeElement === document.body"):  # a key is lost while the window has no focus yet
        page.keyboard.press("Tab")
    expect(page.locator("#drop")).to_be_focused()
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    chooser.value.set_files({"name": "x.png", "mimeType": "image/png", "buffer": png()})
    expect(page.get_by_test_id("instruction")).to_be_focused()  # once the picture is shown
    page.keyboard.type("make it night")
    page.keyboard.press("Enter")
    edited(page)
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "up":
            break
    expect(page.get_by_test_id("up")).to_be_focused()
    page.keyboard.press("Enter")
    page.get_by_test_id("reason").wait_for()
    expect(page.get_by_test_id("up")).to_have_attribute("aria-pressed", "true")


def test_an_edit_can_be_stopped(page, monkeypatch):
    step = jobs.advance_all
    monkeypatch.setattr(jobs, "advance_all", lambda *a: (time.sleep(0.05), step(*a))[1])  # longer than it takes to say stop
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
    expect(page.get_by_test_id("message")).to_have_text("Choose a picture first.")
    give(page)
    page.get_by_test_id("go").click()
    expect(page.get_by_test_id("message")).to_have_text("Say what should change.")


def test_reading_in_the_background_takes_no_message_away(page, server):
    server.edit(instruction="make it winter")
    held = []
    page.route("**/versions", lambda route: held.append(route))
    with page.expect_request("**/versions"):
        page.reload()
    page.get_by_test_id("go").click()  # while the page still reads
    expect(page.get_by_test_id("message")).to_have_text("Choose a picture first.")
    held[0].continue_()
    page.get_by_test_id("history").get_by_text("make it winter").first.wait_for()
    expect(page.get_by_test_id("message")).to_have_text("Choose a picture first.")


def test_a_stored_script_is_text(page, server):
    server.edit(instruction="<img src=x onerror=alert(1)><script>alert(2)</script>")
    page.reload()
    page.get_by_test_id("history").get_by_text("<img src=x onerror=alert(1)>").first.wait_for()


def test_where_keys_are_wanted_the_page_asks_until_one_is_right(browser, tiny, editor_folder, tmp_path):
    with running(serving(tiny, tmp_path, editor_folder), tmp_path, keys=("open-sesame",)) as server:
        server.client.headers["Authorization"] = "Bearer open-sesame"
        ready(server)
        context = browser.new_context()
        page = context.new_page()
        page.goto(server.url)
        for key in ("wrong", "open-sesame"):
            page.locator("#key").fill(key)
            page.get_by_role("button", name="Go on").click()
        page.get_by_test_id("served").get_by_text("version folder").wait_for()
        give(page)
        page.get_by_test_id("instruction").fill("make it night")
        page.get_by_test_id("go").click()
        edited(page)
        expect(page.locator("#history img")).to_have_count(1)
        context.close()


def test_on_a_phone_nothing_is_cut_off(page):
    page.set_viewport_size({"width": 360, "height": 740})
    give(page)
    page.get_by_role("button", name="night", exact=True).click()
    edited(page)
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
