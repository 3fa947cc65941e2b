"""Stable Diffusion's autoencoder as a method: faces to latents and back.

The loss is that of Rombach et al. (2022), appendix G, without its discriminator: the absolute
error, LPIPS, and the divergence of the latents from a standard Gaussian (KL) with a small weight.
"""

import functools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from jaxtyping import Array, Float

from cranio_jax import models, pretrained
from cranio_jax.errors import InputError
from cranio_jax.files.atomic import write_json
from cranio_jax.methods import base, loss_networks, optimizer
from cranio_jax.models.functional import Params, shared_network

Tree = dict[str, Any]
# A second moment of the latents is averaged over about this many steps.
_STEPS = 100
_PARTS = ("encoder", "decoder")
# How the names of the encoder's parameters start.
_ENCODER = ("encoder.", "quant_conv.")


class Autoencoder(base.FromScratch):
    """Reconstructs faces; see `methods.base.Method`.

    Attributes:
      trained: the trained parts: the decoder, and the encoder or not.
      pipeline: the published autoencoder that training starts from, if any.
    """

    kind: base.Kind = "generator"
    reads_xrays = False
    writes_pipeline = True
    needs_faces = True
    needs_subjects = False

    def __init__(self, config: ml_collections.ConfigDict):
        """Raises InputError on impossible settings."""
        m = config.method
        self.config = m
        self.train_config = config.train
        self.dtype = jnp.dtype(config.compute_dtype)
        size = config.data.settings.size
        for name, value in (("kl", m.kl), ("losses.lpips", m.losses.lpips)):
            if value < 0:
                raise InputError(f"method.{name}={value}: it is negative. Set it to 0 or more.")
        self.pipeline = pretrained.open_pipeline(config.pretrained)
        self.trained = tuple(m.trained)
        self._check_trained()

        # The autoencoder.
        fields = self.pipeline.settings.get("vae", {}) | dict(m.vae)
        try:
            vae = models.AutoencoderKLConfig.from_mapping(fields)
        except (TypeError, ValueError) as error:
            raise InputError(f"method.vae: {error}") from None
        self.settings = {"vae": fields}
        factor = 2 ** (len(vae.block_out_channels) - 1)
        if size % factor:
            raise InputError(
                f"data.settings.size={size}: the autoencoder shrinks pictures by {factor}. "
                f"Set a multiple of {factor}."
            )
        self.latent_shape = (size // factor, size // factor, vae.latent_channels)
        self.networks = {
            "vae": shared_network(functools.partial(models.AutoencoderKL, vae, dtype=self.dtype))
        }

        # The networks of the loss.
        self.loss_files: dict[str, list[loss_networks.FeatureFile]] = {}
        if m.losses.lpips:
            found = loss_networks.lpips(m.losses, size, self.dtype)
            self.networks["lpips"], self.loss_files["lpips"] = found
        self.optimizer = optimizer.make_optimizer(config.train, {})

    def _check_trained(self) -> None:
        """Raises InputError if the decoder is not trained, or only it and from scratch."""
        if unknown := set(self.trained) - set(_PARTS):
            raise InputError(
                f"method.trained: {min(unknown)!r} is unknown. Use some of {', '.join(_PARTS)}."
            )
        if "decoder" not in self.trained:
            raise InputError(
                "method.trained: it lacks 'decoder', which has to follow the encoder. Add it."
            )
        # A published file also has the scaling factor of the latents, which has to stay.
        if "encoder" not in self.trained and "vae" not in self.pipeline.folders:
            raise InputError(
                "method.trained: the encoder is not trained, so it has to be a published one. "
                "Set pretrained.vae, or train both."
            )

    def load(self, mesh: jax.sharding.Mesh, frozen_only: bool) -> dict[str, Params]:
        """Returns the weights of LPIPS, and of the published autoencoder to start from."""
        loaded = {
            name: loss_networks.load_features(files, self.networks[name], mesh, self.dtype)
            for name, files in self.loss_files.items()
        }
        if "vae" in self.pipeline.folders and not frozen_only:
            shapes = self.networks["vae"].shapes()
            places = loss_networks.shardings(shapes, mesh, jnp.dtype(jnp.float32))
            with self.pipeline.open("vae") as tensors:
                loaded["vae"] = pretrained.load(shapes, tensors, places, "the autoencoder")
        return loaded

    def init(self, key: Array, loaded: dict[str, Params] | None = None) -> tuple[Tree, Tree]:
        """Returns `(state, frozen)`; parameters that `loaded` lacks are drawn."""
        params = base.drawn(self.networks, key, loaded)
        trained = {"vae": params.pop("vae")}
        state = {
            "step": jnp.zeros((), jnp.int32),
            "params": trained,
            "ema": jax.tree.map(jnp.copy, trained),
            "opt_state": self.optimizer.init(trained),
            "latent_square": jnp.ones(()),
        }
        return state, params

    def train_step(
        self, state: Tree, frozen: Tree, batch: Tree, key: Array
    ) -> tuple[Tree, base.Metrics]:
        """Returns the state after one update, and metrics.

        Random draws depend on the key and the step alone, however the batch is split.
        """
        count = batch["face"].shape[0]
        step_key = jax.random.fold_in(key, state["step"])
        noise = jax.random.normal(step_key, (count, *self.latent_shape))
        gradients, metrics = optimizer.accumulated(
            lambda params, batch, noise: self.loss(params, frozen, batch, noise),
            state["params"],
            batch,
            noise,
            parts=self.train_config.accumulate,
        )
        square = metrics.pop("latent_square")
        encoder = self._encoder(state["params"])
        state, metrics = base.finish_step(self.optimizer, state, gradients, metrics)
        decay = self.train_config.ema_decay
        ema = base.moving_average(state["ema"], state["params"], state["step"], decay)
        moved = base.moving_average(state["latent_square"], square, state["step"], 1 - 1 / _STEPS)
        metrics["latent_std"] = jnp.sqrt(moved)
        # Neither weight decay nor the average's rounding moves an encoder that is not trained.
        params, ema = ({"vae": part["vae"] | encoder} for part in (state["params"], ema))
        return state | {"params": params, "ema": ema, "latent_square": moved}, metrics

    def _encoder(self, params: Tree) -> Params:
        """Returns the encoder's parameters if they are not trained; else none."""
        if "encoder" in self.trained:
            return {}
        return {path: value for path, value in params["vae"].items() if path.startswith(_ENCODER)}

    def loss(
        self, params: Tree, frozen: Tree, batch: Tree, noise: Float[Array, "b h w d"]
    ) -> tuple[Array, base.Metrics]:
        """Returns the loss of a batch, and its parts to log.

        `latent_square` is the mean square of the latents' means.
        """
        # Encode and decode.
        faces = base.scaled(batch["face"])
        kept = jax.lax.stop_gradient(self._encoder(params))
        vae = self.networks["vae"].bind(params["vae"] | kept)
        mean, log_variance = vae.moments(faces.astype(self.dtype))
        mean, log_variance = mean.astype(jnp.float32), log_variance.astype(jnp.float32)
        latents = mean + jnp.exp(0.5 * log_variance) * noise
        decoded = vae.decode_raw(latents.astype(self.dtype)).astype(jnp.float32)
        # Compare.
        terms = {
            "l1": jnp.abs(decoded - faces).mean(),
            "kl": 0.5 * (mean**2 + jnp.exp(log_variance) - 1.0 - log_variance).mean(),
        }
        total = terms["l1"] + self.config.kl * terms["kl"]
        if self.loss_files:
            distance = self.networks["lpips"].bind(frozen["lpips"])
            terms["lpips"] = distance(decoded, faces).mean()
            total += self.config.losses.lpips * terms["lpips"]
        return total, {"loss": total, "latent_square": (mean**2).mean()} | terms

    def write_pipeline(self, folder: pathlib.Path, params: Tree, state: Tree, dtype: str) -> None:
        """Writes an AutoencoderKL whose scaled latents have the standard deviation 1.

        One that started from a published autoencoder keeps its scaling factor, which U-Nets know.
        """
        fields = self.settings["vae"] | {"_class_name": "AutoencoderKL"}
        if "vae" not in self.pipeline.folders:
            fields["scaling_factor"] = round(float(state["latent_square"]) ** -0.5, 4)
        write_json(folder / "config.json", fields)
        pretrained.save(folder, "vae", pretrained.tensors_of(params["vae"]), dtype)

    def describe(self) -> list[str]:
        """Returns lines for an exported model's card."""
        losses = self.config.losses
        words = f", {losses.lpips:g} x LPIPS ({losses.trunk})" if losses.lpips else ""
        return [f"- loss: absolute error{words}, {self.config.kl:g} x KL"]

    def generation_params(self, state: Tree) -> Tree:
        """Returns the moving average of the parameters."""
        return state["ema"]

    def generate(
        self, params: Tree, frozen: Tree, batch: Tree, key: Array
    ) -> Float[Array, "b h w 3"]:
        """Returns each example's face, encoded and decoded; nothing is drawn."""
        vae = self.networks["vae"].bind(params["vae"])
        mean, _ = vae.moments(base.scaled(batch["face"]).astype(self.dtype))
        return jnp.clip(vae.decode_raw(mean).astype(jnp.float32), -1.0, 1.0)

    def weight_hashes(self) -> dict[str, str]:
        """Returns the SHA-256 of each file that training starts from or that the loss reads."""
        hashes = {name: pretrained.sha256(path) for name, path in self.pipeline.folders.items()}
        for name, files in self.loss_files.items():
            hashes |= {f"{name}: {file.prefix}": pretrained.sha256(file.path) for file in files}
        return hashes


METHOD = Autoencoder
