"""Build the images, write their SBOMs, and push images and chart to the operator's registry.

`make release REGISTRY=registry.example.com/you`, after `podman login` (or docker's) and `helm registry login`.
Results in dist/release: an SBOM for each image (SPDX), the chart's package, and values with digests.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import yaml

from scripts.chart_tools import CHART, ROOT, helm, python_tool, run
from serinette import __version__

DIST = ROOT / "dist" / "release"


@dataclass(frozen=True, slots=True)
class Image:
    """An image and its Dockerfile; `name` is also its key in the chart's values."""

    name: str
    dockerfile: str
    target: str | None = None

    def tag(self, registry: str) -> str:
        """Its full name."""
        return f"{registry}/serinette-{self.name}:{__version__}"


IMAGES = (
    Image("gateway", "api/Dockerfile", "gateway"),
    Image("data", "api/Dockerfile", "data"),
    Image("worker", "gpu_worker/Dockerfile"),
)


def build_command(builder: str, image: Image, registry: str, revision: str, arguments: list[str]) -> list[str]:
    """How one image is built; `arguments` are the operator's own (--build-arg, --platform, ...)."""
    labels = {
        "org.opencontainers.image.title": f"serinette-{image.name}",
        "org.opencontainers.image.version": __version__,
        "org.opencontainers.image.revision": revision,
        "org.opencontainers.image.licenses": "Apache-2.0",
    }
    command = [builder, "build", "--file", image.dockerfile, "--tag", image.tag(registry), *arguments]
    command += ["--target", image.target] if image.target else []
    for name, value in labels.items():
        command += ["--label", f"{name}={value}"]
    return [*command, "."]


def aloud(command: list[str]) -> None:
    """Run a command whose output is the operator's to see; ends the program if it fails."""
    print("+", " ".join(command), flush=True)
    if subprocess.run(command, cwd=ROOT, check=False).returncode:
        raise SystemExit(f"{command[0]} failed: see above")


def write_sbom(builder: str, image: Image, registry: str) -> None:
    """What is in the image, as SPDX in JSON."""
    with tempfile.TemporaryDirectory() as directory:
        archive = Path(directory) / "image.tar"
        aloud([builder, "save", "--output", str(archive), image.tag(registry)])
        out = f"spdx-json={DIST / f'serinette-{image.name}.spdx.json'}"
        run([python_tool("syft"), "scan", "--quiet", f"docker-archive:{archive}", "--output", out])


def push(builder: str, image: Image, registry: str, *, plain_http: bool) -> str:
    """Push an image; its digest in the registry."""
    with tempfile.NamedTemporaryFile("r") as digest:
        podman = ["--digestfile", digest.name, *(["--tls-verify=false"] if plain_http else [])]
        aloud([builder, "push", *(podman if builder == "podman" else []), image.tag(registry)])
        if builder == "podman":
            return digest.read().strip()
    listed = run([builder, "inspect", "--format", "{{index .RepoDigests 0}}", image.tag(registry)])
    return listed.strip().partition("@")[2]


def push_chart(registry: str, *, plain_http: bool) -> None:
    """Package the chart and push it beside the images."""
    run([helm(), "package", CHART, "--destination", DIST, "--app-version", __version__])
    package = next(DIST.glob("serinette-*.tgz"))
    aloud([str(helm()), "push", str(package), f"oci://{registry}", *(["--plain-http"] if plain_http else [])])


def arguments(given: list[str]) -> argparse.Namespace:
    """The command line; `build` is what stands after `--`."""
    parser = argparse.ArgumentParser(
        prog="make release",
        description=__doc__,
        epilog="After -- : arguments for the builder (--build-arg, --platform).",
    )
    parser.add_argument("registry", help="registry with its path, such as registry.example.com/you")
    parser.add_argument("--builder", choices=("podman", "docker"), help="the one that is installed, if left out")
    parser.add_argument("--plain-http", action="store_true", help="the registry speaks HTTP: for trials on one machine")
    parser.add_argument("--no-push", action="store_true", help="stop after images, SBOMs and the chart's package")
    end = given.index("--") if "--" in given else len(given)
    return parser.parse_args(given[:end], argparse.Namespace(build=given[end + 1 :]))


def main() -> int:
    """Build, describe, push, and say what to do next."""
    asked = arguments(sys.argv[1:])
    builder = asked.builder or next((name for name in ("podman", "docker") if shutil.which(name)), None)
    if builder is None:
        raise SystemExit("neither podman nor docker is installed: one of them builds the images")
    registry = asked.registry.rstrip("/")
    revision = run(["git", "rev-parse", "HEAD"]).strip()
    shutil.rmtree(DIST, ignore_errors=True)
    DIST.mkdir(parents=True)
    for image in IMAGES:
        aloud(build_command(builder, image, registry, revision, asked.build))
        write_sbom(builder, image, registry)
    if asked.no_push:
        run([helm(), "package", CHART, "--destination", DIST, "--app-version", __version__])
        return 0
    digests = {image.name: {"digest": push(builder, image, registry, plain_http=asked.plain_http)} for image in IMAGES}
    push_chart(registry, plain_http=asked.plain_http)
    values = DIST / "values.yaml"
    values.write_text(yaml.safe_dump({"global": {"imageRegistry": registry}, "images": digests}))
    print(f"\nhelm install serinette oci://{registry}/serinette --version {__version__} \\")
    print(f"    --namespace serinette --create-namespace --values {values.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
