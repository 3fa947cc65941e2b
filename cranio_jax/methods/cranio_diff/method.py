"""Cranio-Diff as a method: its networks, its training step and its sampler."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from jaxtyping import Array, Float, Int, UInt8

from cranio_jax import diffusion, models, pretrained
from cranio_jax.data.prompts import make_tokenizer
from cranio_jax.errors import InputError
from cranio_jax.methods import base, optimizer
from cranio_jax.methods.cranio_diff import checks, export, loading, losses
from cranio_jax.methods.loss_networks import FeatureFile, load_features, loss_file, lpips
from cranio_jax.models import alignment
from cranio_jax.models.functional import Network, Params, shared_network
from cranio_jax.models.patches import PatchCodec

Tree = dict[str, Any]


class CranioDiff:
    """Latent diffusion with a ControlNet and a prompt; see `methods.base.Method`.

    Attributes:
      networks: by name; 'lpips', 'embedder' and 'light_decoder' are only for the loss. 'outline',
        if there is one, adds the outline that it finds to the ControlNet's picture.
      trained: names of the trained parts; 'unet_lora' are the U-Net's additions.
      settings: the fields of each published part's config.json, and of the scheduler's.
      pipeline: the published files.
      feature_files: by network, the files of those that are only for the loss.
      schedule, table: the noise schedule, and the sampler's steps on it.
      scheduler_config: diffusers' scheduler_config.json for this sampler.
      factor, channels: the codec divides a picture's sides by `factor`.
    """

    kind: base.Kind = "generator"
    reads_xrays = True
    writes_pipeline = True
    supports_remat = True
    needs_subjects = False

    def __init__(self, config: ml_collections.ConfigDict):
        """Builds the structure of all networks without parameters.

        Raises InputError on impossible settings.
        """
        m = config.method
        self.config = m
        self.train_config = config.train
        self.sampling = config.sampling
        self.size = config.data.settings.size
        self.seed = config.seed
        self.template = config.prompt.template
        self.remat = config.train.remat
        self.dtype = jnp.dtype(config.compute_dtype)
        self.exact = jnp.promote_types(self.dtype, jnp.float32)  # trained parameters, noise, losses

        # Open published files.
        checks.check_trained(m, self.reads_xrays)
        self.trained = tuple(sorted(m.trained))
        rank = m.lora_rank if "unet_lora" in self.trained else 0
        self.pipeline = pretrained.open_pipeline(config.pretrained, rank)
        tokenizer = make_tokenizer(config)
        published = config.prompt.tokenizer == "pretrained"
        self.tokenizer_hash = {"tokenizer": tokenizer.sha256} if published else {}
        self.empty_prompt = tokenizer([""])
        self.negative_prompt = tokenizer(
            [self.sampling.negative_prompt], "sampling.negative_prompt"
        )

        # Read the settings of networks and scheduler; the config overrides the files.
        settings = {
            part: self.pipeline.settings.get(part, {}) | dict(m.get(part) or {})
            for part in (*checks.NETWORKS, "scheduler")
        }
        checks.check_scheduler_fields(m.get("scheduler") or {})
        self.pipeline.check(settings)
        structure = checks.read_structure(settings)
        self.schedule = structure.schedule
        control = settings.pop("controlnet")
        self.settings = settings
        if self.reads_xrays:
            self.settings["controlnet"] = _controlnet_settings(structure, control)
        self._make_sampler(structure, settings["scheduler"])
        checks.check_agreement(structure)

        # Build the networks.
        codec = checks.read_codec(m, structure.vae)
        self.factor, self.channels = codec
        self.networks = self._make_networks(structure, rank)
        self.feature_files: dict[str, list[FeatureFile]] = {}
        self._add_feature_networks(m.losses)
        self._outline: pretrained.Outline | None = None
        if self.reads_xrays:
            self._add_outline_network(structure.controlnet)
            checks.check_hints(structure.controlnet, codec.factor)
        elif config.pretrained.outline:
            raise InputError("pretrained.outline: it is for a ControlNet. Leave it empty.")
        checks.check_outline_settings(m, self._outline is not None)
        checks.check_codec(structure, codec, self.size)
        checks.check_tokens(config.prompt.length, tokenizer.size, structure.text_encoder)
        checks.check_learning_rates(m)
        self.optimizer = optimizer.make_optimizer(config.train, m.learning_rates)

    def _make_sampler(self, structure: checks.Structure, scheduler: Tree) -> None:
        """Sets the sampler's table and its configuration for diffusers."""
        # The defaults are diffusers' for files without these fields.
        ends = {
            "steps_offset": scheduler.get("steps_offset", 0),
            "set_alpha_to_one": scheduler.get("set_alpha_to_one", True),
        }
        layers = structure.text_encoder.num_hidden_layers
        self.table = diffusion.checked_steps(self.sampling, self.schedule, layers, **ends)
        self.scheduler_config = diffusion.scheduler_config(
            self.sampling, structure.schedule_fields, **ends
        )

    def _make_networks(self, structure: checks.Structure, rank: int) -> dict[str, Network]:
        """Returns the networks that generate; a positive `rank` adds LoRA to the U-Net."""
        kinds: dict[str, tuple[Callable[..., Any], Any, dict[str, Any]]] = {
            "unet": (_unet, structure.unet, dict(remat=self.remat, rank=rank)),
            "text_encoder": (models.CLIPTextModel, structure.text_encoder, {}),
        }
        if self.reads_xrays:
            remat = dict(remat=self.remat)
            kinds["controlnet"] = (models.ControlNetModel, structure.controlnet, remat)
        if self.config.codec == "vae":
            kinds["vae"] = (models.AutoencoderKL, structure.vae, {})
        return {
            part: shared_network(functools.partial(make, fields, dtype=self.dtype, **more))
            for part, (make, fields, more) in kinds.items()
        }

    def _add_outline_network(self, controlnet: models.ControlNetConfig) -> None:
        """Adds the network whose outline the ControlNet sees beside the X-ray, if it has a file.

        Its hash is kept with the ControlNet's settings, since a ControlNet that has learnt from
        outlines makes wrong faces without them. Raises InputError if the file is missing then.
        """
        settings = self.settings["controlnet"]
        self._learnt_with = settings.pop(checks.OUTLINE_FIELD, None)
        if "outline" not in self.pipeline.folders:
            checks.check_no_outline(self._learnt_with)
            return
        path = self.pipeline.folders["outline"]
        checks.check_condition(controlnet, path.name)
        self._outline = pretrained.open_outline(path)
        self.networks["outline"] = self._outline.network(self.dtype)
        settings[checks.OUTLINE_FIELD] = self._outline.sha256

    def _add_feature_networks(self, settings: ml_collections.ConfigDict) -> None:
        """Adds the networks of the decoded terms whose weight is not 0, and their files."""
        checks.check_losses(settings, self.train_config.log_every)
        if settings.lpips:
            found = lpips(settings, self.size, self.dtype)
            self.networks["lpips"], self.feature_files["lpips"] = found
        if settings.identity:
            path = loss_file(settings, "embedder_file", "embedder")
            embedder = pretrained.open_embedder(path)
            self.networks["embedder"] = embedder.network(self.dtype)
            self.feature_files["embedder"] = [
                FeatureFile("", "embedder", embedder.settings["network"], path)
            ]
            # A network that was trained here has its own crop; published ones need aligned faces.
            self.aligns = embedder.crop is None
            self.crop = embedder.crop or settings.crop
            alignment.crop_box(self.crop, self.size, self.size)
        if self.feature_files and settings.decoder:
            decoder = loading.read_tiny_decoder(settings, self.config.codec)
            self.networks["light_decoder"] = shared_network(
                functools.partial(models.TinyDecoder, decoder, dtype=self.dtype)
            )
            path = loss_file(settings, "decoder", "light_decoder")
            self.feature_files["light_decoder"] = [FeatureFile("decoder.", "", "", path)]

    def count_people(self) -> None:
        """Does nothing: the networks' sizes do not depend on the records."""

    def load(self, mesh: jax.sharding.Mesh, frozen_only: bool) -> dict[str, Params]:
        """Returns published parameters by network, in the type they are kept in.

        Raises InputError if they do not fit the networks.
        """
        loaded = {}
        for name, network in sorted(self.networks.items()):
            if name in self.feature_files:
                files = self.feature_files[name]
                loaded[name] = load_features(files, network, mesh, self.dtype)
            elif name == "outline" and self._outline:
                loaded[name] = self._outline.load(network, mesh, self.dtype)
            elif self._is_published(name) and not (frozen_only and name in self.trained):
                loaded[name] = self._load_part(name, network, mesh)
        if "unet_lora" in self.pipeline.folders and not frozen_only:
            loaded["unet"] |= self._load_part("unet_lora", self.networks["unet"], mesh)
        return loaded

    def _is_published(self, name: str) -> bool:
        """Returns True if a network starts from a file; a ControlNet may grow from the U-Net's."""
        folders = self.pipeline.folders
        return name in folders or (name == "controlnet" and "unet" in folders)

    def untrained(self) -> list[str]:
        """Returns the networks that no file gives, a ControlNet that grows from a U-Net's too.

        A ControlNet that has learnt with another outline network, or with none, counts as such.
        """
        given = {*self.pipeline.folders, *self.feature_files}
        if self._outline and self._outline.sha256 != self._learnt_with:
            given -= {"controlnet"}
        return sorted(self.networks.keys() - given)

    def _load_part(self, name: str, network: Network, mesh: jax.sharding.Mesh) -> Params:
        return loading.load_part(
            self.pipeline, name, network=network, mesh=mesh, dtype=self._stored_dtype(name)
        )

    def _stored_dtype(self, name: str) -> jnp.dtype:
        """Returns float32 for trained parameters, else the type in which they are used."""
        return self.exact if name in self.trained else self.dtype

    def init(self, key: Array, loaded: dict[str, Params] | None = None) -> tuple[Tree, Tree]:
        """Returns `(state, frozen)`; parameters that `loaded` lacks are drawn."""
        params = base.drawn(self.networks, key, loaded)

        # Separate the trained parameters from the frozen ones.
        if "unet_lora" in self.trained:
            unet = params["unet"]
            params["unet_lora"] = {path: p for path, p in unet.items() if models.is_lora(path)}
            params["unet"] = {path: p for path, p in unet.items() if not models.is_lora(path)}
        params = {
            name: {path: p.astype(self._stored_dtype(name)) for path, p in part.items()}
            for name, part in params.items()
        }
        trained = {name: params.pop(name) for name in self.trained}
        state = {
            "step": jnp.zeros((), jnp.int32),
            "params": trained,
            # A copy: one buffer under two names can't be donated twice.
            "ema": jax.tree.map(jnp.copy, trained),
            "opt_state": self.optimizer.init(trained),
        }
        return state, params

    def _bind(self, name: str, params: Tree) -> Any:
        """Returns a network with its parameters, additions included."""
        return self.networks[name].bind(params[name] | params.get(name + "_lora", {}))

    def _codec(self, params: Tree) -> Any:
        if self.config.codec == "patch":
            return PatchCodec(self.config.patch)
        return self._bind("vae", params)

    def _latents(self, params: Tree, batch: Tree) -> Float[Array, "b h w d"]:
        return self._codec(params).encode(batch["face"].astype(self.dtype) / 127.5 - 1.0)

    def _context(
        self, params: Tree, prompt_ids: Int[Any, "b n"], skip: int = 0
    ) -> Float[Array, "b n d"]:
        return self._bind("text_encoder", params)(jnp.asarray(prompt_ids), skip)

    @property
    def needs_faces(self) -> bool:
        """Returns True if decoded terms need the faces, even if latents are cached."""
        return bool(self.feature_files)

    @property
    def needs_masks(self) -> bool:
        """Returns True if training shows true outlines."""
        return self.config.true_outline > 0

    def encodable(self) -> dict[str, dict[str, Any]]:
        """Returns `latents` of faces and `context` of prompts, if their networks are frozen."""
        fields = {}
        for field, name in (("latents", "vae"), ("context", "text_encoder")):
            if name not in self.networks or name in self.trained:
                continue
            weights = f"drawn from seed {self.seed}"
            if name in self.pipeline.folders:
                weights = self.pipeline.hash(name)
            settings = {
                key: value for key, value in self.settings[name].items() if not key.startswith("_")
            }
            fields[field] = {"network": settings, "weights": weights, "dtype": self.dtype.name}
        return fields

    def encode(self, frozen: Tree, batch: Tree) -> Tree:
        """Returns the encodable fields whose inputs `batch` holds."""
        fields = {}
        if "face" in batch:
            fields["latents"] = self._latents(frozen, batch)
        if "prompt_ids" in batch:
            fields["context"] = self._context(frozen, batch["prompt_ids"])
        return fields

    def condition(
        self, params: Tree, xray: UInt8[Array, "b H W 1"]
    ) -> Float[Array, "b H W channels"] | None:
        """Returns the picture that the ControlNet sees, in [0, 1]; None without a ControlNet.

        It is the X-ray. With an outline network it has three channels: the X-ray, the probability
        that a pixel is of the head, and the X-ray again.
        """
        if not self.reads_xrays:
            return None
        picture = xray.astype(self.dtype) / 255.0
        if self._outline is None:
            return picture
        head = jax.nn.sigmoid(self._bind("outline", params)(xray)).astype(self.dtype)
        return jnp.concatenate([picture, head, picture], -1)

    def _denoiser(
        self,
        params: Tree,
        picture: Float[Array, "b H W channels"] | None,
        scale: float,
    ) -> Callable[..., Array]:
        """Returns the U-Net, with the ControlNet's outputs on `picture`, if any, times `scale`."""
        unet = self._bind("unet", params)
        if picture is None:
            return lambda x, timesteps, context, _=1.0: unet(
                x.astype(self.dtype), timesteps, context.astype(self.dtype)
            ).astype(self.exact)
        control = self._bind("controlnet", params)

        def denoise(x, timesteps, context, control_strength=1.0):
            copies = x.shape[0] // picture.shape[0]  # guidance runs both prompts in one batch
            pictures = jnp.concatenate([picture] * copies)
            x, context = x.astype(self.dtype), context.astype(self.dtype)
            strength = scale * control_strength
            if isinstance(strength, jax.Array):
                strength = strength.astype(self.dtype)
            down, middle = control(x, timesteps, context, pictures, strength)
            return unet(x, timesteps, context, down, middle).astype(self.exact)

        return denoise

    def loss(
        self, params: Tree, frozen: Tree, batch: Tree, draws: Tree
    ) -> tuple[Array, dict[str, Array]]:
        """Returns the loss of a batch and its parts; see `losses.diffusion_loss`."""
        return losses.diffusion_loss(self, params | frozen, batch, draws)

    def train_step(
        self, state: Tree, frozen: Tree, batch: Tree, key: Array
    ) -> tuple[Tree, dict[str, Array]]:
        """Returns the state after one update, and metrics.

        Random draws depend on the key and the step alone, however the batch is split.
        """
        draws = self._draw(state["step"], count=batch["xray"].shape[0], key=key)
        gradients, metrics = optimizer.accumulated(
            lambda params, batch, draws: self.loss(params, frozen, batch, draws),
            state["params"],
            batch,
            draws,
            parts=self.train_config.accumulate,
        )
        state, metrics = base.finish_step(self.optimizer, state, gradients, metrics)
        decay = self.train_config.ema_decay
        ema = base.moving_average(state["ema"], state["params"], state["step"], decay)
        return state | {"ema": ema}, metrics

    def _draw(self, step: Array, count: int, key: Array) -> Tree:
        """Returns the random draws of a step; see `losses.diffusion_loss`."""
        m, side = self.config, self.size // self.factor
        k1, k2, k3 = jax.random.split(jax.random.fold_in(key, step), 3)
        draws = {
            "timesteps": diffusion.draw_timesteps(k1, count, self.schedule.count, m.timesteps),
            "noise": jax.random.normal(k2, (count, side, side, self.channels)),
            "drop_prompt": jax.random.bernoulli(k3, m.prompt_dropout, (count,)),
        }
        if self.needs_masks:
            k4 = jax.random.fold_in(k3, 1)
            draws["true_outline"] = jax.random.bernoulli(k4, m.true_outline, (count,))
        if self.feature_files:
            warm = jnp.minimum((step + 1.0) / max(m.losses.warmup_steps, 1), 1.0)
            # A logged step is a multiple of `every` too, so that logs show the terms.
            strength = jnp.where((step + 1) % m.losses.every == 0, warm, 0.0)
            draws["decoded"] = jnp.full((count,), strength)
        return draws

    def generation_params(self, state: Tree) -> Tree:
        """Returns the moving average of the parameters."""
        return state["ema"]

    def generate(
        self, params: Tree, frozen: Tree, batch: Tree, key: Array
    ) -> Float[Array, "b h w 3"]:
        """Returns one sampled face for each example, `(batch, size, size, 3)` in [-1, 1]."""
        s, params = self.sampling, params | frozen
        # Draw the noise of each example.
        side = self.size // self.factor
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(batch["id_hash"])
        noise = jax.vmap(lambda k: jax.random.normal(k, (side, side, self.channels)))(keys)
        # Encode the prompts. As in diffusers, clip_skip does not affect the negative prompt.
        context, unconditional = self._context(params, batch["prompt_ids"], s.clip_skip), None
        if s.guidance_scale != 1.0:
            negative = self._context(params, self.negative_prompt)
            unconditional = jnp.broadcast_to(negative, context.shape)
        # Sample.
        denoise = diffusion.guided(
            self._denoiser(params, self.condition(params, batch["xray"]), s.controlnet_scale),
            context,
            unconditional,
            scale=s.guidance_scale,
            rescale=s.guidance_rescale,
        )
        control = diffusion.control_steps(s.num_steps, s.control_start, s.control_end)
        latents = diffusion.sample(
            denoise,
            noise,
            self.table,
            self.schedule,
            keys,
            clip=s.clip or None,
            temperature=s.temperature,
            per_step=None if control.all() else control,
        )
        faces = self._codec(params).decode(latents.astype(self.dtype))
        return jnp.clip(faces.astype(jnp.float32), -1.0, 1.0)

    @staticmethod
    def check_export(config: ml_collections.ConfigDict) -> None:
        """Raises InputError if parts of the pipeline are lacking."""
        p = config.pretrained
        if not p.model and not (p.vae and p.tokenizer):
            raise InputError(
                "job=export writes a diffusers pipeline, whose tokenizer and autoencoder come from"
                " pretrained.model, or from pretrained.tokenizer and pretrained.vae; set them"
            )

    def write_pipeline(self, folder: pathlib.Path, params: Tree, state: Tree, dtype: str) -> None:
        """Writes `params` of all networks as a StableDiffusionControlNetPipeline."""
        export.write(folder, self, params, dtype)

    def describe(self) -> list[str]:
        """Returns lines for an exported pipeline's card."""
        return export.describe(self, self.template)

    def weight_hashes(self) -> dict[str, str]:
        """Returns the SHA-256 of each published file, and of the tokenizer's vocabulary."""
        files = {
            name: path
            for name, path in self.pipeline.folders.items()
            if name in self.networks or name.startswith("lora")
        }
        for name, parts in self.feature_files.items():
            files |= {f"{name}: {part.prefix}": part.path for part in parts}
        hashes = {name: pretrained.sha256(path) for name, path in files.items()}
        return hashes | self.tokenizer_hash

    def parameter_count(self) -> dict[str, int]:
        """Returns the number of parameters of each network."""
        state, frozen = jax.eval_shape(self.init, jax.random.key(0))
        return base.count_parameters(state["params"] | frozen)


def _unet(
    fields: models.UNet2DConditionConfig, *, rank: int, remat: bool, dtype: Any, rngs: Any
) -> Any:
    """Returns a U-Net; a positive `rank` adds LoRA to its attention."""
    model = models.UNet2DConditionModel(fields, rngs=rngs, remat=remat, dtype=dtype)
    return models.add_lora(model, rank, rngs=rngs) if rank else model


def _controlnet_settings(structure: checks.Structure, settings: Tree) -> Tree:
    """Returns the fields of the ControlNet's config.json as diffusers would write them."""
    fields = dataclasses.asdict(structure.controlnet)
    for name in ("out_channels", "up_block_types"):
        fields.pop(name, None)
    return fields | settings
