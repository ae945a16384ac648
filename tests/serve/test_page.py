"""The page in a real browser: a picture, the slider, errors, a clip, the cache; in light and dark."""

import base64
import contextlib
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import av
import pytest

from genai_ray import ModelCatalog
from genai_ray.serve.deployment.ports import find_free_ports
from tests.serve.conftest import serve
from tests.serve.test_web import application
from tests.session.test_pictures import SUNSET, png, save_style
from tests.video.clips import write

pytestmark = pytest.mark.browser
WITHIN_MS = 120_000


@pytest.fixture(scope="module")
def shots(tmp_path_factory):
    """Where screenshots are kept: GENAI_RAY_SCREENSHOTS, else pytest's own folder."""
    folder = Path(os.environ.get("GENAI_RAY_SCREENSHOTS") or tmp_path_factory.mktemp("screenshots"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    assert path, "no Chromium: apt-get install chromium"
    with sync_playwright() as driver:
        one = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield one
        one.close()


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp("serve")
    profile = folder / "page.yaml"
    profile.write_text(
        "name: page\nnum_replicas: 1\nmodels: [websr-x2-s, ffdnet, selfie-segmentation, rife]\n"
        f"people: {{videos_folder: {folder / 'videos'}}}\n"
    )
    endpoint = serve("--profile", profile, ports=find_free_ports(2), stays=True)
    yield endpoint
    endpoint.end()


@contextlib.contextmanager
def opened(browser, served, scheme="light"):
    """A fresh page; what its script complains of, or asks of another host, fails the test."""
    context = browser.new_context(viewport={"width": 1280, "height": 860}, color_scheme=scheme)
    context.set_default_timeout(WITHIN_MS)
    one, complaints = context.new_page(), []
    one.on("pageerror", lambda error: complaints.append(str(error)))
    one.on(
        "request",
        lambda asked: (
            complaints.append(asked.url)
            if f"//{served.http}/" not in asked.url and not asked.url.startswith(("blob:", "data:"))
            else None
        ),
    )
    one.goto(f"http://{served.http}/")
    one.scheme = scheme
    yield one
    context.close()
    assert complaints == []


@pytest.fixture
def page(browser, served, request):
    with opened(browser, served, getattr(request, "param", "light")) as one:
        one.wait_for_selector("#model:enabled")
        yield one


@pytest.fixture(scope="module")
def picture(samples, tmp_path_factory):
    path = tmp_path_factory.mktemp("in") / "bunny.png"
    with av.open(str(samples / "bigbuckbunny-360p.mp4")) as box:
        next(box.decode(video=0)).to_image().save(path)
    return path


def facts(page):
    return dict(
        zip(page.locator("#facts dt").all_inner_texts(), page.locator("#facts dd").all_inner_texts(), strict=True)
    )


def shown(page):
    """Return how many percent of the frame's width show the original."""
    return page.evaluate(
        """() => {
          const clip = getComputedStyle(document.querySelector("#layers .upper")).clipPath;
          const right = clip.replace("inset(", "").replace(")", "").split(" ")[1] ?? "0";
          return Math.round(100 - parseFloat(right));
        }"""
    )


@pytest.mark.parametrize("page", ["light", "dark"], indirect=True)
def test_a_picture_before_and_after(page, picture, shots):
    page.select_option("#model", "websr-x2-s")
    page.set_input_files("#file", picture)
    page.wait_for_selector("#compare:visible")
    told = facts(page)
    assert (told["Model"], told["Backend"], told["Size"]) == ("websr-x2-s", "onnx fp32", "640×360 → 1280×720")
    assert told["Time of the model"].endswith(" ms")
    assert page.get_attribute("#download", "download") == "bunny-websr-x2-s.png"
    assert page.locator("#layers img").evaluate_all(
        "images => images.map(image => [image.alt.slice(0, 6), image.naturalWidth])"
    ) == [
        ["After:", 1280],
        ["Before", 640],
    ]
    page.screenshot(path=shots / f"picture-{page.scheme}.png", full_page=True)


@pytest.mark.parametrize("place", ["#file", "#empty"])  # the box for it, and anywhere else
def test_a_picture_is_dropped(page, picture, place):
    page.select_option("#model", "websr-x2-s")
    build = """content => {
      const dragged = new DataTransfer();
      if (content) {
        const bytes = Uint8Array.from(atob(content), letter => letter.charCodeAt(0));
        dragged.items.add(new File([bytes], "dropped.png", { type: "image/png" }));
      }
      else dragged.setData("text/plain", "no file");
      return dragged;
    }"""
    for content in ("", base64.b64encode(picture.read_bytes()).decode()):
        dragged = {"dataTransfer": page.evaluate_handle(build, content)}
        page.dispatch_event(place, "dragover", dragged)
        assert "over" in page.get_attribute("#drop", "class").split()
        page.dispatch_event(place, "drop", dragged)
        assert "over" not in page.get_attribute("#drop", "class").split()
    page.wait_for_selector("#compare:visible")
    assert page.locator("#error").is_hidden()
    assert page.get_attribute("#download", "download") == "dropped-websr-x2-s.png"
    assert facts(page)["Size"] == "640×360 → 1280×720"


def test_the_slider_by_keyboard_and_by_pointer(page, picture):
    page.select_option("#model", "websr-x2-s")
    page.set_input_files("#file", picture)
    page.wait_for_selector("#compare:visible")
    slider = page.get_by_role("slider", name="How much of the original is shown")
    assert shown(page) == 50
    slider.focus()
    for key, percent in (("ArrowRight", 51), ("ArrowLeft", 50), ("Home", 0), ("End", 100)):
        page.keyboard.press(key)
        assert (int(slider.input_value()), shown(page)) == (percent, percent)
    box = slider.bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + 20)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.25, box["y"] + 20, steps=5)
    page.mouse.up()
    assert 20 <= int(slider.input_value()) <= 30
    assert abs(shown(page) - int(slider.input_value())) <= 1


def test_everything_is_reached_by_keyboard(page, picture):
    page.select_option("#model", "ffdnet")
    wanted = {"Enhance", "Cache", "Help", "file", "sample-picture", "model", "add-model", "param-sigma", "format"}
    reached = []
    while not wanted <= set(reached) and len(reached) < 40:
        page.keyboard.press("Tab")
        reached.append(page.evaluate("() => document.activeElement.id || document.activeElement.textContent"))
    assert wanted <= set(reached), reached
    assert page.get_by_label("Model", exact=True).input_value() == "ffdnet"
    groups = page.locator("#model optgroup").evaluate_all("groups => groups.map(group => group.label)")
    assert groups == ["Enlarge", "Remove noise", "Add frames (clips only)", "Remove the background"]


def test_an_error_is_shown_and_the_page_goes_on(page, picture, tmp_path):
    wrong = tmp_path / "wrong.png"
    wrong.write_bytes(b"no picture at all")
    page.set_input_files("#file", wrong)
    page.wait_for_selector("#error:visible")
    assert page.get_by_role("alert").inner_text().startswith("17 bytes that are no picture")
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no clip at all")
    page.set_input_files("#file", broken)
    page.wait_for_function("() => document.querySelector('#error').textContent.includes('not a supported video')")
    assert "rrno" not in page.get_by_role("alert").inner_text()
    page.select_option("#model", "ffdnet")
    page.set_input_files("#file", picture)
    page.wait_for_selector("#compare:visible")
    assert page.locator("#error").is_hidden()
    page.fill("#param-sigma", "99")
    page.click("#run")
    page.wait_for_selector("#error:visible")
    assert "sigma=99" in page.get_by_role("alert").inner_text()


def test_a_background_is_seen_through(page, picture, shots):
    page.select_option("#model", "selfie-segmentation")
    page.select_option("#format", "webp")
    page.set_input_files("#file", picture)
    page.wait_for_selector("#compare:visible")
    assert page.get_attribute("#download", "download") == "bunny-selfie-segmentation.webp"


def test_a_sample_through_a_chain_zoomed_and_moved(page, shots):
    page.select_option("#model", "ffdnet")
    sigma = page.locator("#param-sigma")
    assert (sigma.input_value(), sigma.get_attribute("max")) == ("15", "75")
    assert page.locator("#params .hint").inner_text() == "Standard deviation of the noise: 0 to 75 of 255."
    assert page.locator("#model-hint").inner_text() == ModelCatalog.default().get("ffdnet").purpose
    page.get_by_role("button", name="Add another model").click()
    page.get_by_label("Then", exact=True).select_option("websr-x2-s")
    with page.expect_request("**/v1/enhance?model=ffdnet**") as asked:
        page.get_by_role("button", name="a picture", exact=True).click()
    assert "format=png&params=sigma%3D15" in asked.value.url or "params=sigma%3D15&format=png" in asked.value.url
    page.wait_for_selector("#compare:visible")
    told = facts(page)
    assert (told["Model"], told["Size"]) == ("ffdnet → websr-x2-s", "640×360 → 1280×720")
    assert page.get_attribute("#download", "download") == "sample-ffdnet-websr-x2-s.webp"

    places = "() => [...document.querySelectorAll('#layers img')].map(image => getComputedStyle(image).transform)"
    assert page.evaluate(places) == ["matrix(1, 0, 0, 1, 0, 0)"] * 2
    page.get_by_role("button", name="Zoom in").click()
    page.get_by_role("button", name="Zoom in").click()
    assert page.locator("#zoom-value").inner_text() == "4×"
    box = page.locator("#frame").bounding_box()
    x, y = box["x"] + box["width"] / 4, box["y"] + box["height"] / 2
    before, split = page.evaluate(places), shown(page)
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 40, y + 20, steps=4)
    page.mouse.up()
    after = page.evaluate(places)
    numbers = [[float(word) for word in one[0].strip("matrix()").split(", ")] for one in (before, after)]
    moved = [new - old for old, new in zip(*numbers, strict=True)]
    assert (after[0], [round(step) for step in moved]) == (after[1], [0, 0, 0, 0, 40, 20])
    assert shown(page) == split
    page.mouse.move(box["x"] + box["width"] / 2, y)  # the divider
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.7, y, steps=4)
    page.mouse.up()
    assert abs(shown(page) - 70) <= 1
    assert page.evaluate(places) == after
    page.locator("#split").focus()
    page.keyboard.press("Shift+ArrowRight")
    assert page.evaluate(places) != after
    page.screenshot(path=shots / "zoom.png", full_page=True)
    page.get_by_role("button", name="Fit").click()
    assert page.evaluate(places) == ["matrix(1, 0, 0, 1, 0, 0)"] * 2
    page.get_by_role("button", name="Remove", exact=True).click()
    assert page.get_by_label("Then", exact=True).count() == 0


def test_a_sample_clip_gets_more_frames_and_another_background(page):
    page.select_option("#model", "rife")
    page.get_by_label("Frames of the result").select_option("factor=3")
    page.get_by_role("button", name="Add another model").click()
    page.get_by_label("Then", exact=True).select_option("selfie-segmentation")
    page.get_by_label("Background").select_option("blur")
    page.get_by_label("Duration", exact=True).fill("f4")
    page.get_by_role("button", name="a clip", exact=True).click()
    page.wait_for_selector("#compare:visible")
    told = facts(page)
    assert (told["Model"], told["Frames"], told["Size"]) == ("rife → selfie-segmentation", "12", "320×180 → 320×180")
    page.get_by_role("button", name="a picture", exact=True).click()
    page.wait_for_selector("#error:visible")
    assert page.get_by_role("alert").inner_text().startswith("rife adds frames, which a picture does not have")


def test_help_names_the_routes_of_this_server(page, served):
    page.get_by_role("link", name="Help").click()
    assert f"http://{served.http}/v1/enhance?model=" in page.locator("#help code").first.inner_text()
    link = page.get_by_role("link", name="Every route of this server").get_attribute("href")
    assert page.request.get(f"http://{served.http}/{link}").json()["openapi"]


def test_a_clip_is_enhanced_and_played(page, tmp_path, shots):
    page.select_option("#model", "websr-x2-s")
    page.set_input_files("#file", write(tmp_path / "clip.mp4", size=(160, 96), pts=list(range(40))))
    page.wait_for_selector("#compare:visible")
    told = facts(page)
    assert (told["Frames"], told["Size"], told["Backend"]) == ("40", "160×96 → 320×192", "onnx fp32 on cpu")
    assert told["Checked"] == "40 frames"
    page.select_option("#check", "off")
    page.fill("#size", "200x200")
    page.select_option("#fit", "pad")
    page.get_by_role("button", name="Enhance").click()
    page.wait_for_function("() => document.querySelector('#facts').textContent.includes('Checked0 frames')")
    assert page.locator("#layers video").evaluate_all("videos => videos.map(video => video.videoWidth)") == [200, 160]
    page.get_by_role("button", name="Play").click()
    page.wait_for_function("() => document.querySelector('#layers video').currentTime > 0.2")
    page.get_by_role("slider", name="Position in the clip").fill("500")
    page.screenshot(path=shots / "clip.png", full_page=True)


def test_a_piece_of_a_clip_is_shown_beside_the_same_frames(page, tmp_path, picture, shots):
    page.select_option("#model", "websr-x2-s")
    page.get_by_label("Start", exact=True).fill("noon")
    page.set_input_files("#file", write(tmp_path / "clip.mp4", size=(160, 96), pts=list(range(60))))
    page.wait_for_selector("#error:visible")
    assert "start 'noon'" in page.get_by_role("alert").inner_text()
    page.get_by_label("Start", exact=True).fill("0:01")
    page.get_by_label("Duration", exact=True).fill("f20")
    page.click("#run")
    page.wait_for_selector("#compare:visible")
    assert facts(page)["Frames"] == "20"
    times = "() => [...document.querySelectorAll('#layers video')].map(video => video.currentTime)"
    assert page.evaluate(times) == [0, 1]
    page.get_by_role("slider", name="Position in the clip").fill("500")
    page.wait_for_function("() => document.querySelector('#layers video').currentTime > 0.3")
    after, before = page.evaluate(times)
    assert abs(before - after - 1) < 0.05
    page.screenshot(path=shots / "piece.png", full_page=True)
    page.set_input_files("#file", picture)
    page.wait_for_selector("#layers img")
    assert page.locator("#piece").is_hidden()


def test_a_clip_is_cancelled(page, tmp_path):
    page.select_option("#model", "ffdnet")
    page.set_input_files("#file", write(tmp_path / "clip.mp4", size=(640, 360), pts=list(range(200))))
    page.wait_for_selector("#progress[value]")
    with page.expect_response(lambda response: response.request.method == "DELETE") as answered:
        page.click("#cancel")
    assert answered.value.json()["state"] == "cancelled"
    page.wait_for_selector("#empty:visible")
    assert page.locator("#error").is_hidden()


@pytest.mark.parametrize("page", ["light", "dark"], indirect=True)
def test_the_cache_is_shown_live(page, served, picture, shots):
    from playwright.sync_api import expect

    page.select_option("#model", "websr-x2-s")
    page.set_input_files("#file", picture)
    page.wait_for_selector("#compare:visible")
    page.get_by_role("link", name="Cache").click()
    row = page.locator("#sessions tr", has_text="websr-x2-s")
    row.wait_for()
    assert page.locator("#devices tr").count() == 1
    hits = int(row.locator("td").nth(5).inner_text())
    for _ in range(3):
        assert page.request.post(f"http://{served.http}/v1/enhance?model=websr-x2-s", data=picture.read_bytes()).ok
    expect(row.locator("td").nth(5)).not_to_have_text(str(hits), timeout=WITHIN_MS)
    assert int(row.locator("td").nth(5).inner_text()) > hits
    page.screenshot(path=shots / f"cache-{page.scheme}.png", full_page=True)
    figures = dict(
        zip(page.locator("#figures dt").all_inner_texts(), page.locator("#figures dd").all_inner_texts(), strict=True)
    )
    assert set(figures) == {"Bytes of the cluster's cache", "Models loaded", "Hits", "Loads", "Evictions"}
    assert int(figures["Models loaded"]) >= 1
    assert page.locator(".meter i").evaluate_all("bars => bars.every(bar => bar.getBoundingClientRect().width > 1)")


def test_a_narrow_screen_needs_no_sideways_scrolling(page, picture, shots):
    page.set_viewport_size({"width": 390, "height": 740})
    page.select_option("#model", "websr-x2-s")
    page.set_input_files("#file", picture)
    page.wait_for_selector("#compare:visible")
    wanted = {"#enhance": "#compare:visible", "#help": "#help:visible", "#cache": "#sessions td:visible"}
    for view, selector in wanted.items():
        page.evaluate("view => { location.hash = view }", view)
        page.wait_for_selector(selector)
        assert page.evaluate("() => document.documentElement.scrollWidth <= innerWidth")
    boxes = "boxes => boxes.every(box => box.scrollWidth <= box.clientWidth)"
    assert page.locator("#cache .scroll").evaluate_all(boxes)
    names = (
        page.locator("#sessions tr")
        .first.locator("td")
        .evaluate_all("cells => cells.map(cell => getComputedStyle(cell, '::before').content)")
    )
    assert names[:3] == ['"Model"', '"State"', '"Backend"']
    page.screenshot(path=shots / "narrow.png", full_page=True)


def test_a_token_is_asked_for_and_kept_for_this_tab_alone(browser, picture, tmp_path):
    (tmp_path / "token").write_text("open-sesame")
    (tmp_path / "page.yaml").write_text(
        f"name: page\nnum_replicas: 1\nmodels: [websr-x2-s]\npeople: {{videos_folder: {tmp_path / 'videos'}}}\n"
    )
    endpoint = serve("--profile", tmp_path / "page.yaml", "--token-file", tmp_path / "token")
    try:
        with opened(browser, endpoint) as page:
            asked = []
            page.on("request", lambda request: asked.append((request.url, request.headers.get("authorization"))))
            page.get_by_role("alert").wait_for()
            assert "no token, or a wrong one" in page.get_by_role("alert").inner_text()
            assert page.locator("#model").is_disabled()
            page.get_by_label("Token", exact=True).fill("wrong")
            with page.expect_response("**/v1/models") as answered:
                page.get_by_role("button", name="Sign in").click()
            assert answered.value.status == 401
            page.wait_for_selector("#sign-in:visible")
            page.get_by_label("Token", exact=True).fill("open-sesame")
            page.keyboard.press("Enter")
            page.wait_for_selector("#model:enabled")
            assert page.locator("#sign-in").is_hidden()
            assert page.locator("#error").is_hidden()
            for path in (picture, write(tmp_path / "clip.mp4", size=(64, 48), pts=list(range(12)))):
                page.set_input_files("#file", path)
                page.wait_for_selector("#compare:visible")
            page.reload()
            page.wait_for_selector("#model:enabled")
            page.get_by_role("link", name="Cache").click()
            page.locator("#sessions tr", has_text="websr-x2-s").wait_for()
            assert not [url for url, _ in asked if "open-sesame" in url]
            assert {token for url, token in asked if "/v1/" in url and not url.startswith("blob:")} == {
                "Bearer wrong",
                "Bearer open-sesame",
            }
            assert page.evaluate("() => localStorage.length + document.cookie.length") == 0
        with opened(browser, endpoint) as page:
            page.wait_for_selector("#sign-in:visible")
    finally:
        assert endpoint.end() == 0


def test_a_picture_that_a_model_takes_is_chosen_as_a_file(ray_session, browser, tmp_path):
    (tmp_path / "models").mkdir()
    save_style(tmp_path / "models" / "style.onnx")
    (tmp_path / "in.png").write_bytes(png(SUNSET))
    (tmp_path / "a style.png").write_bytes(png(SUNSET))
    with (
        application(tmp_path / "videos", tmp_path / "models") as app,
        opened(browser, SimpleNamespace(http=app.url.removeprefix("http://"))) as page,
    ):
        page.wait_for_selector("#model:enabled")
        page.select_option("#model", "style")
        page.set_input_files("#file", tmp_path / "in.png")
        page.wait_for_selector("#error:visible")
        assert "Choose a picture for style" in page.get_by_role("alert").inner_text()
        page.set_input_files("#param-style", tmp_path / "a style.png")
        page.select_option("#model", "websr-x2-s")
        assert not page.locator("#param-style").count()
        page.select_option("#model", "style")  # the picture is still chosen
        with page.expect_response("**/v1/enhance**") as response:
            page.click("#run")
        assert response.value.status == 200
        page.wait_for_selector("#compare:visible")
