"""Cranio-Diff: latent diffusion with a ControlNet on the skull X-ray and a biometric prompt."""

import dataclasses
import math
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax
from jaxtyping import Array, Float, Int, UInt8

from cranio_jax import diffusion, losses, models, optimizer, pretrained, sharding
from cranio_jax.errors import InputError
from cranio_jax.models.functional import Network, Params
from cranio_jax.prompts import make_tokenizer

NETWORKS = ("controlnet", "unet", "text_encoder", "vae")
TRAINABLE = (*NETWORKS, "unet_lora")
# What a ControlNet must have in common with its U-Net.
SHARED = ("block_out_channels", "cross_attention_dim", "in_channels", "layers_per_block")
# Of a scheduler's settings, those that make the noise schedule; the sampler and its spacing are config.sampling's.
SCHEDULE = (
    "beta_schedule",
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "prediction_type",
    "rescale_betas_zero_snr",
)


@dataclasses.dataclass(frozen=True)
class PatchCodec:
    """A lossless stand-in for the autoencoder: `patch` x `patch` pixels become channels (space to depth)."""

    patch: int

    def encode(self, picture: Float[Array, "b H W c"]) -> Float[Array, "b h w d"]:
        b, height, width, c = picture.shape
        p = self.patch
        blocks = picture.reshape(b, height // p, p, width // p, p, c).transpose(0, 1, 3, 2, 4, 5)
        return blocks.reshape(b, height // p, width // p, p * p * c)

    def decode(self, latents: Float[Array, "b h w d"]) -> Float[Array, "b H W c"]:
        b, h, w, d = latents.shape
        p = self.patch
        blocks = latents.reshape(b, h, w, p, p, d // (p * p)).transpose(0, 1, 3, 2, 4, 5)
        return blocks.reshape(b, h * p, w * p, d // (p * p))


class CranioDiff:
    """The method behind the protocol of `cranio_jax.methods.Method`."""

    needs_subjects = False

    def __init__(self, config: ml_collections.ConfigDict):
        """Builds the structure of all networks, and no parameter. Raises InputError on impossible settings."""
        m = self.config = config.method
        self.size, self.seed = config.data.settings.size, config.seed
        self.train_config = config.train
        self.sampling = config.sampling
        self.dtype = jnp.dtype(config.compute_dtype)
        self.exact = jnp.promote_types(self.dtype, jnp.float32)  # masters, noise, losses
        self.trained = tuple(sorted(m.trained))
        if unknown := set(self.trained) - set(TRAINABLE):
            raise InputError(
                f"method.trained names {sorted(unknown)[0]!r}; expected some of {', '.join(TRAINABLE)}"
            )
        if {"unet", "unet_lora"} <= set(self.trained):
            raise InputError(
                "method.trained names both 'unet' and 'unet_lora'; a U-Net is trained whole or by additions"
            )
        rank = m.lora_rank if "unet_lora" in self.trained else 0
        if rank < 1 and "unet_lora" in self.trained:
            raise InputError(f"method.lora_rank={rank}; expected 1 or more")
        self.pipeline = pretrained.open_pipeline(config.pretrained, rank)
        tokenizer = make_tokenizer(config)
        published = config.prompt.tokenizer == "pretrained"
        self.tokenizer_hash = {"tokenizer": tokenizer.sha256} if published else {}
        self.empty_prompt = tokenizer([""])
        self.negative_prompt = tokenizer(
            [self.sampling.negative_prompt], "sampling.negative_prompt"
        )
        given = {
            part: self.pipeline.settings.get(part, {}) | dict(m.get(part) or {})
            for part in (*NETWORKS, "scheduler")
        }
        known = (*SCHEDULE, "steps_offset", "set_alpha_to_one", "trained_betas")
        if unknown := set(m.get("scheduler") or {}) - set(known):
            raise InputError(
                f"method.scheduler.{min(unknown)}: it is unknown. Use some of {', '.join(known)}."
            )
        self.pipeline.check(given)
        try:
            noise = {
                name: given["scheduler"][name] for name in SCHEDULE if name in given["scheduler"]
            }
            self.schedule = diffusion.make_schedule(**noise)
            unet = models.UNet2DConditionConfig.from_mapping(given["unet"])
            control = models.ControlNetConfig.from_mapping(given["unet"] | given["controlnet"])
            text = models.CLIPTextConfig.from_mapping(given["text_encoder"])
            vae = models.AutoencoderKLConfig.from_mapping(given["vae"])
        except (TypeError, ValueError) as error:
            raise InputError(f"method: {error}") from None
        if given["scheduler"].get("trained_betas") is not None:
            raise InputError(
                "the scheduler's trained_betas are not implemented; expected one of the named beta_schedules"
            )
        # As a writer of checkpoints puts them.
        mine = {
            name: v
            for name, v in dataclasses.asdict(control).items()
            if name not in ("out_channels", "up_block_types")
        }
        self.settings = given | {"controlnet": mine | given["controlnet"]}
        # diffusers' defaults where the file is silent
        ends = {
            name: given["scheduler"].get(name, usual)
            for name, usual in (("steps_offset", 0), ("set_alpha_to_one", True))
        }
        self.table = diffusion.checked_steps(
            self.sampling, self.schedule, text.num_hidden_layers, **ends
        )
        self.scheduler_config = diffusion.scheduler_config(self.sampling, noise, **ends)
        agreement = [
            (f"ControlNet's {n}", getattr(control, n), f"U-Net's {n}", getattr(unet, n))
            for n in SHARED
        ]
        agreement += [
            (
                "text encoder's hidden_size",
                text.hidden_size,
                "U-Net's cross_attention_dim",
                unet.cross_attention_dim,
            )
        ]
        for ours, value, theirs, wanted in agreement:
            if value != wanted:
                raise InputError(f"the {ours} is {value}, the {theirs} {wanted}; they must agree")
        with_lora = lambda model, rngs: models.add_lora(model, rank, rngs=rngs) if rank else model
        self.remat = config.train.remat
        kw = dict(remat=self.remat, dtype=self.dtype)
        self.networks = {
            "controlnet": Network(lambda rngs: models.ControlNetModel(control, rngs=rngs, **kw)),
            "unet": Network(
                lambda rngs: with_lora(models.UNet2DConditionModel(unet, rngs=rngs, **kw), rngs)
            ),
            "text_encoder": Network(
                lambda rngs: models.CLIPTextModel(text, dtype=self.dtype, rngs=rngs)
            ),
        }
        if m.codec == "patch":
            self.factor, self.channels = m.patch, 3 * m.patch**2
        elif m.codec == "vae":
            self.networks["vae"] = Network(
                lambda rngs: models.AutoencoderKL(vae, dtype=self.dtype, rngs=rngs)
            )
            self.factor, self.channels = 2 ** (len(vae.block_out_channels) - 1), vae.latent_channels
        else:
            raise InputError(f"method.codec={m.codec!r} is not 'patch' or 'vae'")
        self._add_feature_networks(m.losses)
        halvings = 2 ** (len(control.conditioning_embedding_out_channels) - 1)
        if halvings != self.factor:
            raise InputError(
                f"method.controlnet.conditioning_embedding_out_channels shrinks the X-ray by {halvings}, the codec by {self.factor}"
            )
        if unet.in_channels != self.channels or unet.out_channels != self.channels:
            raise InputError(
                f"method.unet.in_channels and out_channels must be {self.channels}, the codec's channels"
            )
        if self.size % self.factor:
            raise InputError(
                f"data.settings.size={self.size} is not a multiple of {self.factor}, the codec's factor"
            )
        if config.prompt.length > text.max_position_embeddings:
            raise InputError(
                f"prompt.length={config.prompt.length} is more than the text encoder's {text.max_position_embeddings} positions"
            )
        if tokenizer.size > text.vocab_size:
            raise InputError(
                f"method.text_encoder.vocab_size={text.vocab_size}: the tokenizer has {tokenizer.size} ids. Set it to that or more."
            )
        if idle := set(m.learning_rates) - set(self.trained):
            raise InputError(
                f"method.learning_rates names {min(idle)!r}, which method.trained does not"
            )
        self.optimizer = optimizer.make_optimizer(config.train, m.learning_rates)

    def load(self, mesh: jax.sharding.Mesh, frozen_only: bool) -> dict[str, Params]:
        """Published parameters by network, in the type they are kept in. Raises InputError where they do not fit."""
        loaded = {}
        for name in sorted(self.networks):
            if name in self.feature_files:
                loaded[name] = self._load_features(name, mesh)
            elif self.pipeline.name and not (frozen_only and name in self.trained):
                loaded[name] = self._load(name, mesh)
        if "unet_lora" in self.pipeline.folders and not frozen_only:
            loaded["unet"] |= self._load("unet_lora", mesh)
        return loaded

    def _load(self, name: str, mesh: jax.sharding.Mesh) -> Params:
        additions = name == "unet_lora"
        shapes = self.networks["unet" if additions else name].shapes()
        shapes = {
            path: shape for path, shape in shapes.items() if models.is_lora(path) == additions
        }
        dtype = self._kept_as(name)
        folders = self.pipeline.folders
        # Without one of its own, a ControlNet grows from the U-Net's encoder; what that lacks is drawn by `init`.
        source = name if name in folders else "unet"
        with self.pipeline.open(source) as tensors:
            if name not in folders:
                shapes, tensors = pretrained.pick(shapes, tensors)
            what = f"{self.pipeline.name}'s {source}"
            return pretrained.load(shapes, tensors, self._shardings(shapes, mesh), what, dtype)

    def _load_features(self, name: str, mesh: jax.sharding.Mesh) -> Params:
        params, shapes = {}, self.networks[name].shapes()
        for prefix, part, network, file in self.feature_files[name]:
            own = {path: shape for path, shape in shapes.items() if path.startswith(prefix)}
            opened = (
                pretrained.open_part(file, part, network) if part else pretrained.open_weights(file)
            )
            with opened as tensors:
                if name == "light_decoder":  # the file also holds an encoder, which is not used
                    tensors = {k: t for k, t in tensors.items() if not k.startswith("encoder.")}
                places = self._shardings(own, mesh)
                params |= pretrained.load(own, tensors, places, file.name, self.dtype)
        return params

    def _shardings(self, shapes: dict[str, tuple[int, ...]], mesh: jax.sharding.Mesh):
        return sharding.state_sharding(
            {path: jax.ShapeDtypeStruct(shape, self.dtype) for path, shape in shapes.items()}, mesh
        )

    def _add_feature_networks(self, settings: ml_collections.ConfigDict) -> None:
        """The networks of the terms whose weight is not 0, and where their parameters are."""
        losses.check(settings)
        self.feature_files = {}
        if settings.lpips:
            if settings.trunk not in models.TRUNKS:
                raise InputError(
                    f"method.losses.trunk={settings.trunk!r} is not one of {', '.join(models.TRUNKS)}"
                )
            models.check_side(settings.trunk, self.size, self.size)
            self.networks["lpips"] = Network(
                lambda rngs: models.LPIPS(settings.trunk, dtype=self.dtype, rngs=rngs)
            )
            self.feature_files["lpips"] = [
                ("features.", "trunk", settings.trunk, "trunk_file"),
                ("lin", "heads", settings.trunk, "heads_file"),
            ]
        if settings.identity:
            self.feature_files["embedder"] = [("", "embedder", "", "embedder_file")]
        if self.feature_files and settings.decoder:
            if self.config.codec != "vae":
                raise InputError(
                    "method.losses.decoder stands in for an autoencoder's; it needs method.codec='vae'"
                )
            try:
                tiny = models.TinyDecoderConfig.from_mapping(
                    pretrained.read_settings(pathlib.Path(settings.decoder) / "config.json")
                )
            except ValueError as error:
                raise InputError(f"method.losses.decoder: {error}") from None
            self.networks["light_decoder"] = Network(
                lambda rngs: models.TinyDecoder(tiny, dtype=self.dtype, rngs=rngs)
            )
            self.feature_files["light_decoder"] = [("decoder.", "", "", "decoder")]
        for name, files in self.feature_files.items():
            for i, (*which, field) in enumerate(files):
                if not settings[field]:
                    raise InputError(
                        f"method.losses.{field} is empty; name the file of weights, or set the weight of the {name} term to 0"
                    )
                files[i] = (*which, pathlib.Path(settings[field]).expanduser())
        if settings.identity:
            file = self.feature_files["embedder"][0][-1]
            embedder = pretrained.open_embedder(file)
            self.feature_files["embedder"] = [("", "embedder", embedder.settings["network"], file)]
            self.networks["embedder"] = embedder.network(self.dtype)
            # One trained here says what it was trained to see; published ones want aligned faces.
            self.aligns, self.crop = embedder.crop is None, embedder.crop or settings.crop
            losses.crop_box(self.crop, self.size, self.size)

    def _kept_as(self, name: str) -> jnp.dtype:
        """Masters are float32; what is never updated is kept in the type it is used in."""
        return self.exact if name in self.trained else self.dtype

    def init(
        self, key: Array, loaded: dict[str, Params] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """`(state, frozen)`: parameters from `load` where there are such, the others fresh."""
        loaded, params = loaded or {}, {}
        for i, (name, network) in enumerate(sorted(self.networks.items())):
            params[name] = loaded.get(name, {})
            if params[name].keys() != network.shapes().keys():
                params[name] = network.init(jax.random.fold_in(key, i)) | params[name]
        if "unet_lora" in self.trained:
            params["unet_lora"] = {
                path: p for path, p in params["unet"].items() if models.is_lora(path)
            }
            params["unet"] = {
                path: p for path, p in params["unet"].items() if not models.is_lora(path)
            }
        params = {
            name: {path: p.astype(self._kept_as(name)) for path, p in part.items()}
            for name, part in params.items()
        }
        trained = {name: params.pop(name) for name in self.trained}
        # The average starts as a copy: two names for one buffer could not both be donated to the next step.
        ema = jax.tree.map(jnp.copy, trained)
        state = {
            "step": jnp.zeros((), jnp.int32),
            "params": trained,
            "ema": ema,
            "opt_state": self.optimizer.init(trained),
        }
        return state, params

    def _bind(self, name: str, params):
        """A network with its parameters, additions among them."""
        return self.networks[name].bind(params[name] | params.get(name + "_lora", {}))

    def _codec(self, params):
        return (
            PatchCodec(self.config.patch)
            if self.config.codec == "patch"
            else self._bind("vae", params)
        )

    def _latents(self, params, batch) -> Float[Array, "b h w d"]:
        return self._codec(params).encode(batch["face"].astype(self.dtype) / 127.5 - 1.0)

    def _context(
        self, params, prompt_ids: Int[Array, "b n"], skip: int = 0
    ) -> Float[Array, "b n d"]:
        return self._bind("text_encoder", params)(jnp.asarray(prompt_ids), skip)

    @property
    def needs_faces(self) -> bool:
        """Whether decoded terms compare with faces even where latents stand in for them."""
        return bool(self.feature_files)

    def encodable(self) -> dict[str, dict[str, Any]]:
        """`latents` of faces and `context` of prompts, where their networks are frozen."""
        found = {}
        for field, name in (("latents", "vae"), ("context", "text_encoder")):
            if name in self.networks and name not in self.trained:
                weights = (
                    self.pipeline.hash(name)
                    if self.pipeline.name
                    else f"drawn from seed {self.seed}"
                )
                settings = {
                    key: value
                    for key, value in self.settings[name].items()
                    if not key.startswith("_")
                }
                found[field] = {"network": settings, "weights": weights, "dtype": self.dtype.name}
        return found

    def encode(self, frozen, batch) -> dict[str, Array]:
        """The encodable fields that `batch` has the makings of."""
        made = {"latents": self._latents(frozen, batch)} if "face" in batch else {}
        return made | (
            {"context": self._context(frozen, batch["prompt_ids"])} if "prompt_ids" in batch else {}
        )

    def _denoiser(self, params, xray: UInt8[Array, "b H W 1"], scale: float):
        unet, control = (self._bind(name, params) for name in ("unet", "controlnet"))
        picture = xray.astype(self.dtype) / 255.0

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

    def loss(self, params, frozen, batch, draws) -> tuple[Array, dict[str, Array]]:
        """Weighted squared error of the denoiser's output (Eq. 9 of the paper is its unweighted form)."""
        m, params = self.config, params | frozen
        x0 = (batch["latents"] if "latents" in batch else self._latents(params, batch)).astype(
            self.exact
        )
        timesteps = draws["timesteps"]
        x_t = self.schedule.add_noise(x0, draws["noise"], timesteps)
        context = (
            batch["context"] if "context" in batch else self._context(params, batch["prompt_ids"])
        )
        if m.prompt_dropout:
            context = jnp.where(
                draws["drop_prompt"][:, None, None],
                self._context(params, self.empty_prompt),
                context,
            )
        denoise = self._denoiser(params, batch["xray"], 1.0)
        output = denoise(x_t, timesteps, context)
        error = output - self.schedule.target(x0, draws["noise"], timesteps)
        weight = diffusion.loss_weight(self.schedule, timesteps, m.loss_weight, m.min_snr_gamma)
        each = weight * (error**2).mean((1, 2, 3))
        total, metrics = each.mean(), {"mse": (error**2).mean()}
        if self.feature_files:  # a term of weight 0 leaves no trace in the compiled step
            strength = draws["decoded"][0]
            x0_hat = self.schedule.to_x0(output, x_t, timesteps)
            terms = losses.sometimes(
                strength > 0, lambda: self._decoded_terms(params, batch, x0_hat, timesteps)
            )
            for name, value in terms.items():
                total += m.losses[name] * strength * value
            metrics |= terms
        return total, {"loss": total} | metrics

    def _decoded_terms(self, params, batch, x0_hat, timesteps) -> dict[str, Array]:
        """LPIPS and identity distance between decoded estimates and true faces (Eq. 10, 11), gated by the timestep."""
        s = self.config.losses
        stride = (
            max(x0_hat.shape[0] // s.decode_batch, 1) if s.decode_batch else 1
        )  # strided: a share of each device's examples
        x0_hat, timesteps, batch = jax.tree.map(lambda a: a[::stride], (x0_hat, timesteps, batch))
        # Decoding again in the backward pass costs time and spares the largest activations there are.
        codec = lambda params: (
            self._bind("light_decoder", params)
            if "light_decoder" in params
            else self._codec(params)
        )
        decode = jax.checkpoint(lambda params, latents: codec(params).decode(latents))
        decoders = {name: params[name] for name in ("light_decoder", "vae") if name in params}
        faces = decode(decoders, x0_hat.astype(self.dtype)).astype(self.exact)
        truth = batch["face"].astype(self.exact) / 127.5 - 1.0
        gate = losses.timestep_gate(timesteps, self.schedule.count, s.gate, s.gate_limit)
        terms = {}
        if s.lpips:
            distance = self._bind("lpips", params)
            terms["lpips"] = losses.weighted_mean(distance(faces, truth), gate)
        if s.identity:
            embed = self._bind("embedder", params)
            # The estimate is laid as the true face is: a network that finds landmarks in it would be one more to trust.
            landmarks = batch.get("landmarks") if self.aligns else None
            see = lambda f: losses.embedder_input(
                f, landmarks, self.crop, embed.height, embed.width
            )
            a, b = (embed(see(f)).astype(self.exact) for f in (faces, truth))
            counts = gate if s.lateral_identity else gate * batch["frontal"]
            terms["identity"] = losses.weighted_mean(losses.cosine_distance(a, b), counts)
        return terms

    def train_step(self, state, frozen, batch, key):
        """One update; random draws depend on the seed and the step alone, not on how the batch is cut up."""
        m, t = self.config, self.train_config
        count, side = batch["xray"].shape[0], self.size // self.factor
        k1, k2, k3 = jax.random.split(jax.random.fold_in(key, state["step"]), 3)
        draws = {
            "timesteps": jax.random.randint(k1, (count,), 0, self.schedule.count),
            "noise": jax.random.normal(k2, (count, side, side, self.channels)),
            "drop_prompt": jax.random.bernoulli(k3, m.prompt_dropout, (count,)),
        }
        if self.feature_files:
            warm = jnp.minimum((state["step"] + 1.0) / max(m.losses.warmup_steps, 1), 1.0)
            draws["decoded"] = jnp.full(
                (count,), jnp.where(state["step"] % m.losses.every == 0, warm, 0.0)
            )
        gradients, metrics = optimizer.accumulated(
            lambda params, batch, draws: self.loss(params, frozen, batch, draws),
            state["params"],
            batch,
            draws,
            t.accumulate,
        )
        updates, opt_state = self.optimizer.update(gradients, state["opt_state"], state["params"])
        params = jax.tree.map(lambda p, u: p + u.astype(p.dtype), state["params"], updates)
        step = state["step"] + 1
        # A young average would remember the random start for long.
        decay = jnp.minimum(t.ema_decay, (1.0 + step) / (10.0 + step))
        ema = jax.tree.map(lambda e, p: e + (1.0 - decay) * (p - e), state["ema"], params)
        metrics["gradient_norm"] = optax.global_norm(gradients)
        return {"step": step, "params": params, "ema": ema, "opt_state": opt_state}, metrics

    def generation_params(self, state):
        """The averaged parameters."""
        return state["ema"]

    def generate(self, params, frozen, batch, key):
        """Samples one face for each example, `(batch, size, size, 3)` in [-1, 1]."""
        s, params = self.sampling, params | frozen
        side = self.size // self.factor
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(batch["id_hash"])
        noise = jax.vmap(lambda k: jax.random.normal(k, (side, side, self.channels)))(keys)
        # Layers of the text encoder are skipped for the prompt only, as by diffusers.
        context, unconditional = self._context(params, batch["prompt_ids"], s.clip_skip), None
        if s.guidance_scale != 1.0:
            unconditional = jnp.broadcast_to(
                self._context(params, self.negative_prompt), context.shape
            )
        denoise = self._denoiser(params, batch["xray"], s.controlnet_scale)
        denoise = diffusion.guided(
            denoise, context, unconditional, s.guidance_scale, s.guidance_rescale
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
        return jnp.clip(
            self._codec(params).decode(latents.astype(self.dtype)).astype(jnp.float32), -1.0, 1.0
        )

    def weight_hashes(self) -> dict[str, str]:
        """SHA-256 of the published files behind each network, and of the tokenizer's vocabulary."""
        files = {
            name: path
            for name, path in self.pipeline.folders.items()
            if name in self.networks or name.startswith("lora")
        }
        files |= {
            f"{name}: {prefix}": path
            for name, parts in self.feature_files.items()
            for prefix, *_, path in parts
        }
        hashes = {name: pretrained.sha256(path) for name, path in files.items()}
        return hashes | self.tokenizer_hash

    def parameter_count(self) -> dict[str, int]:
        """Parameters of each network."""
        shapes = jax.eval_shape(self.init, jax.random.key(0))
        both = shapes[0]["params"] | shapes[1]
        return {
            name: sum(math.prod(p.shape) for p in params.values()) for name, params in both.items()
        }
