"""Which files of weights are read from a folder, and fetched from the hub: here a server that answers as it does."""

import hashlib
import http.server
import json
import shutil
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import pico
from qrlora.families import FAMILIES, hub_download, open_base, quantization
from qrlora.families.weight_files import file_variant, weight_files

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
LAYER = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"


@pytest.mark.parametrize(
    ("held", "expected"),
    [
        ({"unet": ["", "fp16"], "vae": ["", "fp16"]}, {F32: "", BF16: "fp16", F16: "fp16"}),
        ({"unet": ["", "fp16"], "vae": [""]}, {F32: "", BF16: "fp16", F16: "fp16"}),
        ({"unet": ["fp16"], "vae": ["fp16"]}, {F32: "fp16", BF16: "fp16", F16: "fp16"}),
        ({"unet": ["", "bf16"], "vae": ["", "bf16"]}, {F32: "", BF16: "bf16", F16: ""}),
        ({"unet": ["", "ema"], "vae": [""]}, {F32: "", BF16: "", F16: ""}),
        ({"unet": ["fp16"], "vae": ["bf16"]}, {F32: None, BF16: None, F16: None}),
        ({"unet": [], "vae": ["fp16"]}, {F32: None, BF16: None, F16: None}),
    ],
)
@pytest.mark.parametrize("shards", ["", "-00001-of-00002"])
def test_half_the_bytes_are_read_where_half_is_kept_and_whatever_there_is_otherwise(held, expected, shards):
    names = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}
    held = {**held, "text_encoder": held["vae"]}
    files = [f"{p}/{names[p]}{'.' * bool(v)}{v}{shards}.safetensors" for p, found in held.items() for v in found]
    others = ["sd_xl_base_1.0.safetensors", "vae_1_0/diffusion_pytorch_model.safetensors", "unet/config.json"]
    assert {dtype: file_variant(dtype, files + others, names) for dtype in expected} == expected


def renamed(path, variant):
    return path.with_name(path.name.replace(".safetensors", f".{variant}.safetensors"))


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """A folder with every weight twice; those of the variant are told apart by their sign."""
    folder = tmp_path_factory.mktemp("both") / "base"
    shutil.copytree(pico.folder(), folder)
    for path in folder.glob("*/*.safetensors"):
        halves = {name: -x.half() if x.is_floating_point() else x for name, x in load_file(path).items()}
        save_file(halves, renamed(path, "fp16"))
    return folder


def same(model, full, sign):
    for ours, theirs in zip(model.parameters(), full.parameters(), strict=True):
        torch.testing.assert_close(ours.float() * sign, theirs.float(), rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize(("dtype", "sign"), [("float32", 1), ("bfloat16", -1), ("float16", -1)])
def test_a_folder_with_both_is_read_as_the_dtype_wants_it(both, dtype, sign):
    base, plain = open_base(both, "cpu", dtype), open_base(pico.folder(), "cpu")
    for part in (base.family.component, *base.encoders_and_vae):
        same(getattr(base.pipe, part), getattr(plain.pipe, part), sign)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_of_nothing_but_the_variant_opens_in_any_dtype(tmp_path, family):
    shutil.copytree(pico.folder(family), tmp_path / "b")
    for path in (tmp_path / "b").glob("*/*.safetensors"):
        path.rename(renamed(path, "fp16"))
    plain = open_base(pico.folder(family), "cpu")
    for dtype in ("float32", "float16"):
        same(open_base(tmp_path / "b", "cpu", dtype).model, plain.model, 1)


def test_directions_of_a_quantised_base_are_those_of_the_files_that_were_opened(both):
    pytest.importorskip("torchao")
    full = load_file(both / "unet" / "diffusion_pytorch_model.safetensors")[f"{LAYER}.weight"]
    for dtype, sign in (("float32", 1), ("bfloat16", -1)):
        (weight,) = (w for _, w in open_base(both, "cpu", dtype, "int8").weights(LAYER))
        assert torch.equal(weight, full if sign > 0 else -full.half())


def test_shards_of_a_variant_are_one_checkpoint(both, tmp_path):
    """Read where the folder has plain weights, too, as in diffusers' own loader: see above."""
    shutil.copytree(pico.folder(), tmp_path / "b")
    model = open_base(pico.folder(), "cpu", "float16").model
    model.save_pretrained(tmp_path / "shards", variant="fp16", max_shard_size="50KB")
    shutil.copytree(tmp_path / "shards", tmp_path / "b" / "unet", dirs_exist_ok=True)
    assert len(weight_files(tmp_path / "b" / "unet", "fp16")) > 2
    assert [x.name for x in weight_files(tmp_path / "b" / "unet", "bf16")] == ["diffusion_pytorch_model.safetensors"]
    base = open_base(tmp_path / "b", "cpu", "float16")
    same(base.model, model, 1)
    original = quantization.original_weights(tmp_path / "b" / "unet", "fp16")
    for name, weight in base.weights("self"):
        assert torch.equal(original(name), weight)


def commit_of(revision):
    return hashlib.sha1(revision.encode()).hexdigest()


class Hub(http.server.BaseHTTPRequestHandler):
    """What the hub answers about one repository, whose revisions are folders."""

    revisions: dict[str, Path] = {}
    sent: list[str] = []

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        parts = self.path.partition("?")[0].strip("/").split("/")
        if len(parts) < 2:  # its front page
            return self.answer(200, b"")
        api = parts[:2] == ["api", "models"]
        owner, name, *rest = parts[2:] if api else parts
        revision = rest[1] if len(rest) > 1 else "main"
        known = {key: folder for k, folder in self.revisions.items() for key in (k, commit_of(k))}
        if (owner, name) != ("me", "base") or revision not in known:
            code = "RevisionNotFound" if (owner, name) == ("me", "base") else "RepoNotFound"
            return self.answer(404, b"{}", {"X-Error-Code": code})
        folder, commit = known[revision], revision if len(revision) == 40 else commit_of(revision)
        files = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
        if api and rest and rest[0] == "tree":
            rows = [{"type": "file", "path": f, "size": (folder / f).stat().st_size, "oid": f} for f in files]
            return self.answer(200, json.dumps(rows).encode())
        if api:
            told = {"id": "me/base", "sha": commit, "siblings": [{"rfilename": f} for f in files]}
            return self.answer(200, json.dumps(told).encode())
        file = "/".join(rest[2:])
        if file not in files:
            return self.answer(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        if self.command == "GET":
            self.sent.append(file)
        tag = f'"{commit_of(str(folder / file))}"'
        return self.answer(200, (folder / file).read_bytes(), {"X-Repo-Commit": commit, "ETag": tag})

    def answer(self, status, body, headers=()):
        self.send_response(status)
        for key, value in dict(headers).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def served(both, tmp_path, monkeypatch):
    """The files that a hub with the repository me/base has sent; its branch `old` holds plain files alone."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    Hub.revisions, Hub.sent = {"main": both, "old": pico.folder()}, []
    address = f"http://127.0.0.1:{server.server_port}"
    for name, value in {
        "ENDPOINT": address,
        "HUGGINGFACE_CO_URL_TEMPLATE": address + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(tmp_path / "hub"),
        "HF_HUB_OFFLINE": False,
    }.items():
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
    monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", address)
    yield Hub.sent
    server.shutdown()
    server.server_close()


def weights(sent):
    return {name.rpartition("/")[2] for name in sent if name.endswith(".safetensors")}


def test_of_a_repository_with_both_only_those_that_are_wanted_are_fetched(served):
    half = open_base("me/base", "cpu", "bfloat16")
    assert weights(served) == {"model.fp16.safetensors", "diffusion_pytorch_model.fp16.safetensors"}
    assert half.name == "me/base"
    served.clear()
    open_base("me/base", "cpu", "float16")
    assert not weights(served)
    open_base("me/base", "cpu", "float32")
    assert weights(served) == {"model.safetensors", "diffusion_pytorch_model.safetensors"}


def test_what_was_fetched_before_is_not_fetched_again_as_another_variant(served, monkeypatch):
    full = open_base("me/base", "cpu", "float32")
    served.clear()
    again = open_base("me/base", "cpu", "bfloat16")
    assert not weights(served) and torch.equal(again.model.conv_in.weight, full.model.conv_in.weight.bfloat16())
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    open_base("me/base", "cpu", "float32")


@pytest.mark.parametrize("how", ["setting", "name"])
def test_a_revision_is_fetched_and_named(served, how):
    base = open_base("me/base", "cpu", revision="old") if how == "setting" else open_base("me/base@old", "cpu")
    assert base.name == "me/base@old"
    assert torch.equal(base.model.conv_in.weight, open_base(pico.folder(), "cpu").model.conv_in.weight)


def test_a_revision_that_is_not_there_is_refused_in_one_line(served):
    with pytest.raises(OSError, match="base model 'me/base@new': the repository has no branch, tag or commit of that"):
        open_base("me/base", "cpu", revision="new")
    for name in (pico.folder(), "tiny-sd3"):
        with pytest.raises(ValueError, match="is on this machine and has no revision 'v1'"):
            open_base(name, "cpu", revision="v1")


def test_names_of_the_hub_are_told_from_others():
    assert hub_download.parse_hub_name("a/b") == ("a/b", None) and hub_download.parse_hub_name("a/b@refs/pr/3") == (
        "a/b",
        "refs/pr/3",
    )
    for other in ("tiny-sd3", "./a/b", "~/a", "/a/b", "a/b/c", "a/b.safetensors", ""):
        assert hub_download.parse_hub_name(other) is None
