"""Which URLs and addresses a webhook may have, what connects to them, and how its tries are spread."""

from __future__ import annotations

import ssl
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from api.settings import GatewaySettings
from controller.delivery_window import Window
from controller.webhooks import Answer, open_client, pause_s, send
from serinette import webhook_targets
from serinette.batch import BatchOptions
from serinette.errors import InvalidSpec, Unavailable
from serinette.job import JobOptions, JobStatus
from serinette.webhook import check_url, event_id, is_public, parse_address
from serinette.webhook_targets import Targets
from tests.receivers import SECRET, receiver

LOOPBACK = (ip_network("127.0.0.0/8"),)
PUBLIC = "93.184.215.14"


def answering(*rounds: list[str]) -> Any:
    """A resolver that answers each round's addresses, and the last round's for ever."""
    left = list(rounds)

    def look_up(_host: str, port: int, **_: object) -> list[Any]:
        addresses = left.pop(0) if len(left) > 1 else left[0]
        return [(0, 0, 0, "", (address, port)) for address in addresses]

    return look_up


@pytest.mark.parametrize(
    "url",
    [
        "https://hooks.example.com/serinette?tenant=a",
        "http://hooks.example.com:8080",
        "https://[2606:2800:21f:cb07:6820:80da:af6b:8b2c]/hook",
    ],
)
def test_a_url_of_the_web_is_taken_as_it_is(url: str) -> None:
    assert JobOptions(webhook=url).webhook == url


@pytest.mark.parametrize(
    ("url", "kept"),
    [
        ("http://h.example/é?a=ü&b=%20", "http://h.example/%C3%A9?a=%C3%BC&b=%20"),
        ("https://exämple.com:8443/", "https://xn--exmple-cua.com:8443/"),
        ("", None),
        (None, None),
    ],
)
def test_other_letters_are_encoded_and_nothing_is_no_webhook(url: str | None, kept: str | None) -> None:
    assert JobOptions(webhook=url).webhook == kept
    assert BatchOptions(webhook=url).webhook == kept


@given(st.text() | st.from_regex(r"https?://[\w.:@-]{1,12}(/.{0,12})?", fullmatch=True))
def test_any_text_is_a_url_in_ascii_that_stays_one_or_is_refused(text: str) -> None:
    try:
        kept = check_url(text)
    except ValueError:
        return
    assert kept.isascii()
    assert check_url(kept) == kept


@pytest.mark.parametrize(
    "url",
    [
        "ftp://example.com/x",
        "file:///etc/passwd",
        "https://",
        "//example.com",
        "https://user:pass@example.com/",
        "https://example.com@127.0.0.1/",
        "https://example.com\\@127.0.0.1/",
        "https://example.com/#fragment",
        "https://example.com:99999/",
        "https://[::1/",
        "https://exa mple.com/",
        "https://example.com/\r\nHost: other",
        "https://exämple.com\uff0f@127.0.0.1/",
        "https://" + "ü" * 70 + ".com/",
        "https://example.com/" + "a" * 2_048,
    ],
)
def test_any_other_url_is_refused(url: str) -> None:
    with pytest.raises(ValidationError):
        JobOptions(webhook=url)


@pytest.mark.parametrize(
    ("address", "public"),
    [
        (PUBLIC, True),
        ("2606:2800:21f:cb07:6820:80da:af6b:8b2c", True),
        ("64:ff9b::5db8:d70e", True),  # NAT64 of a public address: how IPv6-only machines reach IPv4
        ("10.0.0.1", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("127.0.0.1", False),
        ("0.0.0.0", False),
        ("169.254.169.254", False),  # metadata of AWS, GCP, Azure and others
        ("100.100.100.200", False),  # of Alibaba
        ("168.63.129.16", False),  # of Azure, on a public address
        ("192.0.0.192", False),  # of Oracle
        ("100.64.0.1", False),
        ("224.0.0.1", False),
        ("255.255.255.255", False),
        ("192.0.2.1", False),
        ("::1", False),
        ("::", False),
        ("fe80::1%eth0", False),
        ("fd00:ec2::254", False),  # metadata of AWS over IPv6
        ("fec0::1", False),
        ("ff02::1", False),
        ("::ffff:127.0.0.1", False),
        ("::127.0.0.1", False),
        ("64:ff9b::a9fe:a9fe", False),
        ("2002:7f00:1::", False),  # 6to4 of 127.0.0.1
        ("2001:db8::1", False),
    ],
)
def test_only_public_addresses_are_delivered_to(address: str, public: bool) -> None:
    assert is_public(parse_address(address)) is public


def test_a_network_of_the_operators_own_may_be_delivered_to() -> None:
    inside = [ip_network("10.1.0.0/16"), ip_network("fd00:1::/32")]
    assert is_public(ip_address("10.1.2.3"), inside)
    assert is_public(ip_address("fd00:1::9"), inside)
    assert not is_public(ip_address("10.2.2.3"), inside)


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/",
        "http://127.1/",
        "http://2130706433/",
        "http://0x7f000001/",
        "http://0177.0.0.1/",
        "http://017700000001/",
        "http://0xa9.0xfe.0xa9.0xfe/latest/meta-data",
        "http://[::ffff:7f00:1]/",
        "http://[64:ff9b::7f00:1]/",
        "http://[fe80::1%25lo]/",
        "http://0/",
        "http://[::1]:6379/",
        "http://[::ffff:169.254.169.254]/latest/meta-data",
        "http://localhost:8019/",
    ],
)
def test_hosts_that_lead_inside_are_refused_at_submit(url: str) -> None:
    with pytest.raises(InvalidSpec) as refused:
        Targets().check(url)
    assert refused.value.field == "webhook"


def test_one_address_inside_is_enough_to_refuse_a_host() -> None:
    with pytest.raises(InvalidSpec, match="public addresses only"):
        Targets(look_up=answering([PUBLIC, "10.0.0.1"])).check("https://hooks.example.com/")


def test_a_host_that_does_not_exist_is_refused() -> None:
    def nowhere(*_: object, **__: object) -> list[Any]:
        raise OSError("no such host")

    with pytest.raises(InvalidSpec, match="there is no host"):
        Targets(look_up=nowhere).check("https://nowhere.example/")
    with pytest.raises(InvalidSpec, match="there is no host"):
        Targets().check(f"https://{'a' * 70}.example/")


async def post(targets: Targets, url: str, timeout_s: float = 10) -> Answer:
    async with open_client(targets, timeout_s) as client:
        return await send(client, url, "{}", {"webhook-id": "x"})


@pytest.mark.parametrize(
    "later", [["127.0.0.1"], ["::ffff:127.0.0.1"], ["169.254.169.254"], [PUBLIC, "127.0.0.1"], ["127.0.0.1", PUBLIC]]
)
async def test_a_name_that_leads_elsewhere_after_its_check_is_not_followed(later: list[str]) -> None:
    with receiver() as inside:
        targets = Targets(look_up=answering([PUBLIC], later), remembered_s=0)
        url = f"http://rebinding.example:{inside.port}/"
        targets.check(url)
        answer = await post(targets, url)
    assert answer.error and "public addresses only" in answer.error
    assert not inside.came


async def test_the_connection_goes_to_the_very_address_that_was_checked() -> None:
    """Nothing under it looks the name up again: there is no such name."""
    with receiver() as target:
        targets = Targets(LOOPBACK, look_up=answering(["127.0.0.1"]))
        answer = await post(targets, f"http://hooks.example:{target.port}/a?b=c")
    assert answer == Answer(200)
    assert target.came[0].headers["host"] == f"hooks.example:{target.port}"
    assert target.came[0].path == "/a?b=c"


async def test_the_next_address_is_tried_when_one_refuses() -> None:
    with receiver() as target:
        targets = Targets(LOOPBACK, look_up=answering(["127.0.0.2", "127.0.0.1"]))
        assert await post(targets, f"http://hooks.example:{target.port}/") == Answer(200)


def certified(tmp_path: Path) -> tuple[Path, ssl.SSLContext]:
    """A certificate for hooks.example, and a server's context with it."""
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=hooks.example"]
    command += ["-addext", "subjectAltName=DNS:hooks.example", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return certificate, context


async def test_tls_proves_the_name_and_not_the_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    certificate, context = certified(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    targets = Targets(LOOPBACK, look_up=answering(["127.0.0.1"]))
    with receiver(context) as target:
        assert await post(targets, f"https://hooks.example:{target.port}/") == Answer(200)
        other = await post(targets, f"https://other.example:{target.port}/")
    assert target.names == ["hooks.example", "other.example"]
    assert other.status is None
    assert other.error and "could not be reached" in other.error
    assert len(target.came) == 1


async def test_redirects_are_not_followed_and_proxies_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    with receiver() as target, receiver() as proxy:
        monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{proxy.port}")
        target.answers = [307]
        answer = await post(Targets(LOOPBACK), f"http://127.0.0.1:{target.port}/")
    assert answer.status == 307
    assert answer.error and "redirects" in answer.error
    assert [each.path for each in target.came] == ["/"]
    assert not proxy.came


async def test_a_target_that_says_nothing_is_given_up() -> None:
    silence = threading.Event()
    with receiver() as target:
        target.meanwhile = lambda: silence.wait(20)
        answer = await post(Targets(LOOPBACK), f"http://127.0.0.1:{target.port}/", timeout_s=0.3)
        silence.set()
    assert answer.error and "did not answer within" in answer.error


@pytest.mark.parametrize(("status", "final"), [(200, True), (204, True), (410, True), (404, False), (503, False)])
def test_what_no_further_try_would_change_is_final(status: int, final: bool) -> None:
    assert Answer(status).final is final


def test_pauses_grow_and_end() -> None:
    assert [pause_s(tries, 8, 5.0) for tries in range(1, 9)] == [5, 20, 80, 320, 1280, 5120, 20480, None]
    assert pause_s(12, 20, 5.0) == 6 * 3600


def test_an_event_keeps_its_id_and_holds_no_dot() -> None:
    assert event_id("a-b", JobStatus.FAILED) == event_id("a-b", "failed")
    assert "." not in event_id("a-b", JobStatus.FAILED)  # the signature parts its fields by dots


@pytest.mark.parametrize("secret", ["", " ", "whsec_", "whsec_c2hvcnQ=", "no base64!", f"{SECRET} whsec_c2hvcnQ="])
def test_a_secret_that_cannot_sign_is_refused_at_the_start(secret: str) -> None:
    with pytest.raises(ValidationError, match="webhook_secret"):
        GatewaySettings(webhook_secret=secret)


def test_one_tenants_hanging_look_ups_leave_threads_for_another() -> None:
    goes_on = threading.Event()
    asked: list[str] = []

    def look_up(host: str, port: int, **_: object) -> list[Any]:
        asked.append(host)
        if host.startswith("hangs"):
            assert goes_on.wait(60)
        found: list[Any] = answering([PUBLIC])(host, port)
        return found

    targets = Targets(look_up=look_up)

    def refused(number: int) -> str:
        with pytest.raises(Unavailable) as error:
            targets.check(f"https://hangs{number}.example/", "greedy")
        return error.value.message

    try:
        with ThreadPoolExecutor(12) as callers, pytest.MonkeyPatch.context() as patched:
            patched.setattr(webhook_targets, "_LOOKUP_TIMEOUT_S", 0.5)
            same = [callers.submit(refused, 0) for _ in range(4)]
            others = [callers.submit(refused, number) for number in range(1, 8)]
            targets.check("https://hooks.example/", "other")
            messages = [one.result() for one in (*same, *others)]
        assert len(asked) == len(set(asked)) == 1 + webhook_targets._LOOKUPS_OF_TENANT, "each host once"
        assert sum("too many" in message for message in messages) >= 4
    finally:
        goes_on.set()


def test_an_answer_of_the_resolver_serves_for_a_while_and_a_failure_does_not() -> None:
    asked: list[str] = []

    def look_up(host: str, port: int, **_: object) -> list[Any]:
        asked.append(host)
        if len(asked) == 1:
            raise OSError("no such host")
        found: list[Any] = answering([PUBLIC])(host, port)
        return found

    targets = Targets(look_up=look_up)
    with pytest.raises(InvalidSpec):
        targets.check("https://hooks.example/")
    for _ in range(5):
        targets.check("https://hooks.example/")
    assert len(asked) == 2


def test_the_window_gives_each_tenant_and_host_a_share_and_a_silent_host_pauses() -> None:
    window = Window(total=6, of_tenant=4, of_host=2)
    began = [(tenant, host, window.begin(tenant, host, 0.0)) for tenant, host in ("ax", "ax", "ax", "ay", "ay", "az")]
    assert [tenant + host for tenant, host, delay_s in began if delay_s is None] == ["ax", "ax", "ay", "ay"]
    assert window.begin("b", "x", 0.0), "the host has its share"
    assert window.begin("b", "z", 0.0) is None
    assert window.begin("c", "z", 0.0) is None
    assert window.begin("d", "w", 0.0), "all are in use"
    window.end("a", "x", answered=False, took_s=10, at_s=10)
    window.begin_round(10.0)
    assert window.begin("e", "x", 10.0) == pytest.approx(1 + 2), "it pauses, and then one finds out"
    assert window.begin("e", "x", 10.0) == pytest.approx(1 + 2 + 10), "the next comes as slowly as the last"
    window.end("a", "x", answered=True, took_s=0.1, at_s=11)
    assert window.begin("e", "x", 11.0) is None, "it answers again"


def test_hosts_that_were_silent_are_not_remembered_for_ever() -> None:
    window = Window()
    for number in range(500):
        window.begin("a", f"host-{number}", 0.0)
        window.end("a", f"host-{number}", answered=False, took_s=10, at_s=0.0)
    window.begin_round(60.0)
    assert len(window._hosts) == 500
    window.begin_round(3_600.0)
    assert not window._hosts
