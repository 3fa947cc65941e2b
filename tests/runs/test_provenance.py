"""What results tell of where they come from."""

from cranio_jax.runs.provenance import provenance, public_config


def test_no_path_is_told(config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "patients").mkdir()
    config.data.data_dir = str(tmp_path)
    config.evaluate.weights = (
        f"{tmp_path}/patients,{tmp_path}/*.safetensors,~/private/gone.pth,patients"
    )
    config.pretrained.update(model="owner/model", vae="gs://hospital/secret/vae.safetensors")
    told = public_config(config)
    assert told["evaluate"]["weights"] == "patients,*.safetensors,gone.pth,patients"
    assert (
        told["pretrained"]["model"] == "owner/model"
        and told["pretrained"]["vae"] == "vae.safetensors"
    )
    assert "hospital" not in str(told) and str(tmp_path) not in str(told)
    assert told["prompt"] == config.prompt.to_dict() and told["train"] == config.train.to_dict()


def test_a_machine_without_git(config, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert provenance(config)["commit"] == "unknown"
