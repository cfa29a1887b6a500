"""The run configuration: one frozen tree of sections, from which every phase takes only its own part.

Defaults < recipe < ``section.key=value``. Unknown keys are refused. Each field's docstring carries its unit and
is what the documentation and the error messages quote. Validators check; they never change a value.
"""

from enum import StrEnum
from typing import Annotated, Any, Self

from pydantic import (
    Field,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)

from configs.gateway import GatewayConfig
from configs.section import Section
from configs.terms.recipe import SourceTerms, TermsConfig
from configs.watermark import WatermarkConfig, WatermarkKind

ONLY_TEACHER = "teacher"  # name of the one teacher of a recipe that has no several
MARKING_ARGUMENTS = frozenset({"additional_config", "logits_processors"})  # of vLLM's, by which a watermark gets there

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
# Part of an application's name and of the table's statistics, which keep 32 characters of a text.
TeacherName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,31}$")]
# Ray reads more into a selector's value, such as in(a, b); one value is what a pool of nodes has.
Labels = dict[str, Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]]


def _check_workers(value: Any, validate: ValidatorFunctionWrapHandler) -> Any:
    """Say one sentence where a union of types would say one each."""
    rule = f"must be a number of workers from 1, or a pair [min, max] of such numbers, not {value!r}"
    try:
        workers = validate(value)
    except ValidationError:
        raise ValueError(rule) from None
    low, high = (workers, workers) if isinstance(workers, int) else workers
    if not 0 < low <= high:
        raise ValueError(rule)
    return workers


NumWorkers = Annotated[int | tuple[int, int], WrapValidator(_check_workers)]


class Device(StrEnum):
    """Where an engine or a trainer computes."""

    AUTO = "auto"
    CPU = "cpu"
    GPU = "gpu"


class EngineKind(StrEnum):
    """How vLLM is run inside a teacher replica."""

    AUTO = "auto"
    IN_PROCESS = "in_process"
    ASYNC = "async"


class BrokenLinePolicy(StrEnum):
    """What becomes of a prompt line that cannot be read."""

    REFUSE = "refuse"
    FAIL_ROW = "fail_row"


class TruncationPolicy(StrEnum):
    """What becomes of a completion that ended because it reached ``sampling.max_tokens``."""

    REJECT = "reject"
    KEEP = "keep"
    RETRY_ONCE = "retry_once"


class VerifierName(StrEnum):
    """How a completion is judged; `services.verifiers` implements each."""

    NONE = "none"
    EXACT_ANSWER = "exact_answer"


class IdentityPolicy(StrEnum):
    """What becomes of a completion that says it is another maker's model."""

    OFF = "off"
    REJECT = "reject"


class TransferMode(StrEnum):
    """What the student is given of a completion: the teacher's token ids, or its text tokenised anew."""

    AUTO = "auto"
    TOKEN_IDS = "token_ids"
    TEXT = "text"


class Phases(StrEnum):
    """How teacher and student share the cluster."""

    IN_TURN = "in_turn"
    OVERLAPPED = "overlapped"


class Schedule(StrEnum):
    """Shape of the learning rate after warm-up."""

    COSINE = "cosine"
    WSD = "wsd"
    CONSTANT = "constant"


class Tracker(StrEnum):
    """Something that draws the curves of a training job."""

    TENSORBOARD = "tensorboard"
    WANDB = "wandb"
    MLFLOW = "mlflow"


class Attention(StrEnum):
    """How a student attends, in transformers' names."""

    AUTO = "auto"
    SDPA = "sdpa"
    FLEX = "flex_attention"
    EAGER = "eager"


class LossKernel(StrEnum):
    """What computes the loss from the last hidden states."""

    AUTO = "auto"
    CHUNKED = "chunked"
    LIGER = "liger"


class LoraQuantization(StrEnum):
    """How the frozen weights below adapters are packed."""

    NF4 = "nf4"


class TrainingDtype(StrEnum):
    """Dtype of the forward and backward pass; master weights and optimiser state are always float32."""

    BFLOAT16 = "bfloat16"
    FLOAT32 = "float32"


class TinyModelConfig(Section):
    """A model made from scratch: the arguments of its `transformers` configuration class."""

    model_type: str = "llama"
    """`transformers` model type, such as llama, qwen3 or gpt2."""
    arguments: dict[str, Any] = Field(default_factory=dict)
    """Arguments of the configuration class; vocabulary size and special tokens come from the tokenizer."""


class AdditionConfig(Section):
    """Worked three-digit addition, the built-in task of the quickstart."""

    num_problems: Annotated[int, Field(gt=0, le=40_000)]
    """How many different problems are drawn (problems); about 50,000 of the million are held out."""
    seed: int = 0
    """Seed of the draw."""


class OptimizerConfig(Section):
    """AdamW and its schedule."""

    learning_rate: PositiveFloat = 2e-5
    """Peak learning rate."""
    schedule: Schedule = Schedule.COSINE
    """Shape after warm-up: cosine to ``min_learning_rate_ratio``, warm-up-stable-decay, or constant."""
    warmup_ratio: Fraction = 0.03
    """Part of all steps spent on linear warm-up."""
    decay_ratio: Fraction = 0.2
    """Part of all steps spent on the final linear decay; read by the ``wsd`` schedule only."""
    min_learning_rate_ratio: Fraction = 0.1
    """Learning rate at the end, as a part of the peak."""
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.01
    """Decoupled weight decay, applied to matrices only."""
    beta1: Fraction = 0.9
    """AdamW's first-moment decay."""
    beta2: Fraction = 0.95
    """AdamW's second-moment decay."""
    max_grad_norm: PositiveFloat = 1.0
    """Global gradient norm above which gradients are scaled down."""


class ObjectiveConfig(Section):
    """What the student's loss is: by itself the cross-entropy of the teacher's completions."""

    kl_weight: Fraction = 0.0
    """Part of the loss that is the forward KL divergence from the teacher's ``sampling.top_logprobs``; the rest is
    cross-entropy. Above 0 it needs the teacher's own tokens (``student.transfer`` token_ids)."""
    kl_temperature: PositiveFloat = 1.0
    """Temperature at which teacher and student are compared."""
    ground_truth_share: Fraction = 0.0
    """Part of the prompts whose reference ``answer`` is learnt as well, as a row of its own beside the teacher's
    completions and whatever became of them; chosen by prompt id."""


class TrainingConfig(Section):
    """How the student (and a home-made teacher) is trained."""

    sequence_length: PositiveInt = 4096
    """Length of a packed sequence (tokens); longer rows are handled by ``overlong``."""
    batch_sequences: PositiveInt | None = 16
    """Packed sequences in one optimiser step over all workers; times ``sequence_length`` is the global batch. Null
    where ``batch_tokens`` is set."""
    batch_tokens: PositiveInt | None = None
    """Loss-bearing tokens in one optimiser step over all workers, as nearly as whole sequences allow; exactly one of
    it and ``batch_sequences`` is set (tokens)."""
    micro_batch_sequences: PositiveInt = 1
    """Packed sequences in one forward pass of one worker."""
    epochs: PositiveInt = 1
    """Passes over the accepted rows."""
    max_steps: PositiveInt | None = None
    """Stop after this many optimiser steps, across epochs as needed; unset means ``epochs`` decides."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """AdamW and its schedule."""
    objective: ObjectiveConfig = ObjectiveConfig()
    """What the student's loss is."""
    dtype: TrainingDtype = TrainingDtype.BFLOAT16
    """Dtype of the forward and backward pass."""
    seed: int = 0
    """Seed of initialisation and of the sample order."""
    packing_window_rows: PositiveInt = 4096
    """Rows among which best-fit packing searches (rows)."""
    evaluation_fraction: Annotated[float, Field(ge=0.0, lt=0.5)] = 0.01
    """Part of the rows kept from training for the evaluation loss, chosen by prompt id."""
    evaluate_every: PositiveInt = 100
    """Optimiser steps between two evaluation losses."""
    checkpoint_every: PositiveInt = 100
    """Optimiser steps between two checkpoints."""
    keep_checkpoints: PositiveInt = 2
    """Newest checkpoints that are kept."""
    async_checkpoint: bool = True
    """Write checkpoints while the next steps are taken, from a copy of the state in the host's memory."""
    log_every: PositiveInt = 10
    """Optimiser steps between two lines of metrics."""
    activation_checkpointing: Annotated[str, Field(pattern="^(none|full|selective-every-[1-9][0-9]*)$")] = "none"
    """Layers whose activations are computed again in the backward pass, to save memory: ``none``, ``full`` for all of
    them, or ``selective-every-N`` for one in N."""
    compile: bool = False
    """Compile the model with ``torch.compile``; worth it on GPUs."""
    attention: Attention = Attention.AUTO
    """Kernel of the attention within each packed row: ``auto`` takes FlexAttention on GPUs, which skips what a row may
    not see, and on CPUs what transformers takes for the architecture, mostly sdpa."""
    loss_kernel: LossKernel = LossKernel.AUTO
    """What computes cross-entropy without all logits: ``chunked`` is ours and runs everywhere, ``liger`` is Liger's on
    GPUs (extra ``liger``), for objectives without ``kl_weight``; ``auto`` takes ``chunked``."""
    overlong: Annotated[str, Field(pattern="^(refuse|drop)$")] = "drop"
    """Rows longer than ``sequence_length``: ``drop`` them and count them, or ``refuse`` to train."""
    check_rows: Annotated[int, Field(ge=0)] = 64
    """Accepted rows that are looked at before the first step: completion kept by the tokenizer, loss on it alone, end
    of turn, template, closed thinking. The first that would teach something else stops the run; 0 looks at none."""
    num_workers: NumWorkers = 1
    """Ray Train workers; each holds one FSDP2 shard of the student. A pair ``[min, max]`` lets the group shrink and
    grow with the cluster, at the same global batch and sample order."""
    shard_size: PositiveInt | None = None
    """Workers over which one copy of the student is spread, a node's GPUs say; the other workers hold further copies
    (hybrid sharding). It divides the number of workers; unset spreads one copy over all of them."""
    tensor_parallel_size: PositiveInt = 1
    """Neighbouring workers that compute each layer together, each with its part of the matrices and all with the same
    rows; they should be GPUs of one node. It divides the number of workers, ``shard_size``, and the student's heads."""
    resize_check_every: PositiveFloat = 60.0
    """Seconds between two looks whether an elastic group could have another number of workers."""
    threads_per_worker: PositiveInt = 1
    """CPU threads of one worker."""
    max_failures: Annotated[int, Field(ge=0)] = 3
    """Worker-group failures after which training gives up; preemptions do not count."""
    trackers: tuple[Tracker, ...] = (Tracker.TENSORBOARD,)
    """Where metrics go beside ``metrics.jsonl``; ``wandb`` and ``mlflow`` are installed by whoever names them, and
    follow their own environment variables."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.batch_sequences is None) == (self.batch_tokens is None):
            raise ValueError(
                "set exactly one of batch_sequences (sequences of a step) and batch_tokens (loss tokens of a step), "
                "the other one to null"
            )
        if self.shard_size is not None and self.shard_size % self.tensor_parallel_size:
            raise ValueError(
                f"tensor_parallel_size ({self.tensor_parallel_size}) must divide shard_size ({self.shard_size}), the "
                "workers of one copy of the student"
            )
        if self.loss_kernel is LossKernel.LIGER and self.objective.kl_weight:
            raise ValueError(
                f"loss_kernel liger knows cross-entropy alone and objective.kl_weight is {self.objective.kl_weight:g}; "
                "set loss_kernel to auto"
            )
        return self

    @property
    def min_workers(self) -> int:
        """Workers without which training waits."""
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[0]

    @property
    def max_workers(self) -> int:
        """Workers up to which the group grows."""
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[1]


class MakeTeacherConfig(Section):
    """A teacher made on the spot, for machines that can reach no hub."""

    addition: AdditionConfig
    """The task it is taught."""
    model: TinyModelConfig
    """Its architecture."""
    training: TrainingConfig
    """How it is trained."""
    min_accuracy: Fraction = 0.98
    """Exact-match accuracy on held-out problems that it must reach; below it the run stops."""


class EngineConfig(Section):
    """vLLM's settings in each replica."""

    kind: EngineKind = EngineKind.AUTO
    """``in_process`` steps the engine on a thread of the replica (fastest on CPUs), ``async`` uses vLLM's AsyncLLM
    (normal on GPUs), ``auto`` chooses by device."""
    device: Device = Device.AUTO
    """Where the teacher computes; ``auto`` takes GPUs when the cluster has any."""
    dtype: str = "bfloat16"
    """Weights and activations, in vLLM's names."""
    max_model_len: PositiveInt | None = None
    """Longest prompt plus completion (tokens); unset takes the model's own limit."""
    max_num_seqs: PositiveInt = 256
    """Sequences the engine decodes at a time in one replica."""
    tensor_parallel_size: PositiveInt = 1
    """GPUs over which each layer is split."""
    pipeline_parallel_size: PositiveInt = 1
    """Groups of GPUs over which the layers are split."""
    gpu_memory_utilization: Annotated[float, Field(gt=0.0, le=1.0)] = 0.9
    """Part of each GPU's memory that vLLM may take."""
    kv_cache_gib: PositiveInt = 1
    """Memory for the KV cache on a CPU (GiB)."""
    threads: PositiveInt = 1
    """OpenMP threads of the engine on a CPU."""
    quantization: str | None = None
    """Weights quantised while loading, in vLLM's names, such as fp8; unset takes the weights as they are stored."""
    speculative_config: dict[str, Any] | None = None
    """Speculative decoding in vLLM's form, such as ``{method: ngram, num_speculative_tokens: 4, prompt_lookup_max: 4}``
    or ``{model: OWNER/SMALLER, num_speculative_tokens: 4}``; unset decodes token by token."""
    enable_prefix_caching: bool | None = None
    """Keep the cache of prompt prefixes that rows share; unset takes vLLM's default, on where the model allows it."""
    extra: dict[str, Any] = Field(default_factory=dict)
    """Any further vLLM engine argument, such as ``max_num_batched_tokens`` or ``kv_cache_dtype``."""

    @property
    def gpus_per_replica(self) -> int:
        """GPUs that one replica takes where it computes on any."""
        return self.tensor_parallel_size * self.pipeline_parallel_size

    @model_validator(mode="after")
    def _check(self) -> Self:
        if taken := sorted(self.extra.keys() & type(self).model_fields.keys()):
            raise ValueError(
                f"teacher.engine.extra: {taken[0]} has a key of its own; set teacher.engine.{taken[0]} instead"
            )
        return self


class TeacherConfig(Section):
    """A model that writes completions."""

    model: str | None = None
    """Hugging Face repository or local directory; exactly one of ``model`` and ``make`` is set."""
    revision: str | None = None
    """Commit, tag or branch of the repository; pin a commit for a run that can be repeated."""
    make: MakeTeacherConfig | None = None
    """Make the teacher first instead of loading one."""
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Arguments handed to the chat template, such as ``enable_thinking: false``."""
    trust_remote_code: bool = False
    """Run code that comes with the model repository. Leave it off unless you have read that code."""
    engine: EngineConfig = EngineConfig()
    """vLLM's settings in each replica."""
    watermark: WatermarkConfig | None = None
    """Mark what the teacher draws with a secret key; unset marks nothing."""
    accelerator_type: str | None = None
    """Ray's name of the GPU type that replicas need, such as H100 or H200."""
    min_replicas: PositiveInt = 1
    """Replicas that are up from the start until no row is left."""
    max_replicas: PositiveInt = 1
    """Replicas up to which the teacher scales: to meet ``deadline``, or without one as long as a further replica has
    work for longer than it takes to start; and never more than there are ``engine.max_num_seqs`` of rows left."""
    deadline: PositiveFloat | None = None
    """Time in which all rows should be written, counted from when a command begins to generate (seconds). It decides
    on replicas; a run that is late goes on."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.model is None) == (self.make is None):
            raise ValueError("set exactly one of teacher.model (a model to load) and teacher.make (one to train first)")
        if self.min_replicas > self.max_replicas:
            raise ValueError(
                f"teacher.min_replicas ({self.min_replicas}) must not exceed teacher.max_replicas ({self.max_replicas})"
            )
        if self.watermark is not None and self.engine.speculative_config is not None:
            raise ValueError(
                "teacher.watermark cannot be had with teacher.engine.speculative_config, whose drafts vLLM accepts "
                "without asking who marks; unset one of them"
            )
        if self.watermark is not None and (taken := self.engine.extra.keys() & MARKING_ARGUMENTS):
            raise ValueError(
                f"teacher.engine.extra: {min(taken)} would take the place of what teacher.watermark hands to vLLM; "
                "leave it out, or unset teacher.watermark"
            )
        return self


class PromptsConfig(Section):
    """Where prompts come from."""

    source: str | None = None
    """A JSONL or Parquet file, a directory of either, on any fsspec URI, or ``hf://datasets/OWNER/NAME`` for a Hub
    data set. Rows have ``messages`` (a list of role and content) or ``prompt`` (a string), and may have ``answer``."""
    addition: AdditionConfig | None = None
    """Draw worked-addition problems instead of reading a source."""
    split: str = "train"
    """Split of a Hub data set."""
    subset: str | None = None
    """Configuration of a Hub data set that has several, such as ``main``."""
    prompt_column: str = "prompt"
    """Column with a plain prompt."""
    messages_column: str = "messages"
    """Column with a chat."""
    answer_column: str = "answer"
    """Column with the reference answer, read when a verifier needs one."""
    teacher_column: str | None = None
    """Column with the name of the teacher that answers the row, one of ``teachers``."""
    default_teacher: str | None = None
    """Teacher of rows that name none; unset, such a row is a broken line."""
    limit: PositiveInt | None = None
    """Take only this many prompts (rows)."""
    on_broken_line: BrokenLinePolicy = BrokenLinePolicy.REFUSE
    """``refuse`` the whole source, or count a broken line as a ``failed`` row."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.source is None) == (self.addition is None):
            raise ValueError("set exactly one of prompts.source (data to read) and prompts.addition (problems to draw)")
        return self


class SamplingConfig(Section):
    """How the teacher writes; all of it is part of the generation fingerprint."""

    n: PositiveInt = 1
    """Completions per prompt (samples)."""
    temperature: Annotated[float, Field(ge=0.0, le=2.0)] = 0.7
    """0 is greedy, which has one answer (``n``); 2 is what vLLM allows."""
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Nucleus mass."""
    top_k: Annotated[int, Field(ge=0)] = 0
    """Candidates kept; 0 keeps all."""
    max_tokens: PositiveInt = 1024
    """Longest completion (tokens)."""
    stop: tuple[str, ...] = ()
    """Strings that end a completion."""
    seed: int = 0
    """A prompt's first sample is drawn with a hash of this seed and the prompt id, its following ones with the next
    integers, so a row is the same whoever makes it."""
    top_logprobs: Annotated[int, Field(ge=0, le=20)] = 0
    """Likeliest tokens whose log-probabilities are kept at each place of a completion, for
    ``training.objective.kl_weight``; 8 bytes each in the table before compression. 20 are what vLLM allows."""
    truncation: TruncationPolicy = TruncationPolicy.REJECT
    """What becomes of a completion that reached ``max_tokens``; ``retry_once`` asks for ``retry_max_tokens``."""
    retry_max_tokens: PositiveInt | None = None
    """Limit of that second try (tokens); unset means twice ``max_tokens``."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.n > 1 and self.temperature == 0:
            raise ValueError(
                f"n ({self.n}) asks for several answers to a prompt and temperature 0 is greedy, which has one; raise "
                "temperature, or set n to 1"
            )
        if "" in self.stop:
            raise ValueError("stop has an empty string, which vLLM refuses with every prompt; leave it out")
        return self


class AcceptanceConfig(Section):
    """Which completions the student may learn from."""

    verifier: VerifierName = VerifierName.NONE
    """``exact_answer`` compares the completion's final answer with the row's ``answer``; ``none`` accepts."""
    min_completion_tokens: PositiveInt = 1
    """Shorter completions are rejected (tokens)."""
    identity: IdentityPolicy = IdentityPolicy.OFF
    """``reject`` completions that say they are another maker's model than their teacher, such as "I am ChatGPT"
    (``configs/claims.yaml``); ``off`` accepts them. They are counted when the data is sealed either way."""


class GenerationConfig(Section):
    """How rows are streamed through the teacher. Only ``shard_rows`` decides the data; the rest may be changed."""

    shard_rows: PositiveInt = 512
    """Rows of one shard, the unit of work and of commit (rows)."""
    clients: PositiveInt = 1
    """Ray Data actors that feed the teacher."""
    window_rows: PositiveInt | None = None
    """Rows one client keeps in flight while ``max_replicas`` run, and a share of them while fewer do; unset takes half
    more than all replicas decode at a time, shared among the clients (rows)."""
    rows_per_call: PositiveInt = 32
    """Rows of one call to a replica (rows)."""
    reorder: bool = True
    """Ask for the rows of a shard with shared prefixes together and the longest expected first; off keeps their order.
    No answer depends on it."""
    max_attempts: PositiveInt = 4
    """Replies of one call that may be late (``deadlines.request``) before its rows fail."""


class LoraConfig(Section):
    """Low-rank adapters (Hu et al. 2021) that are trained in place of the student's own weights."""

    r: PositiveInt = 16
    """Rank of the adapters."""
    alpha: PositiveFloat = 32.0
    """Scale of what the adapters add, divided by ``r``."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Part of the adapters' inputs that is left out while training."""
    target_modules: tuple[str, ...] = ()
    """Last parts of the names of the matrices that are adapted, such as q_proj; empty means every linear layer but
    the output matrix."""
    quantization: LoraQuantization | None = None
    """Frozen linear layers in 4 bits (QLoRA, Dettmers et al. 2023): ``nf4``, through bitsandbytes (extra ``qlora``).
    The export is merged into the weights as they were. Unset keeps them in float32."""


class StudentConfig(Section):
    """The model that learns."""

    model: str | None = None
    """Hugging Face repository or local directory to start from; exactly one of ``model`` and ``init`` is set."""
    revision: str | None = None
    """Commit, tag or branch of the repository."""
    init: TinyModelConfig | None = None
    """Start from random weights of this architecture, with the teacher's tokenizer."""
    lora: LoraConfig | None = None
    """Train adapters and leave the student's weights as they are; they are merged into the exported student. Unset
    trains all weights."""
    transfer: TransferMode = TransferMode.AUTO
    """``token_ids`` trains on the teacher's own tokens and needs equal tokenizers, ``text`` tokenises anew,
    ``auto`` takes token ids when the tokenizers are equal."""
    trust_remote_code: bool = False
    """Run code that comes with the model repository. Leave it off unless you have read that code."""
    device: Device = Device.AUTO
    """Where the student trains; ``auto`` takes GPUs when the cluster has any."""
    control: bool = False
    """Also train a control student, same budget, on final answers without the teacher's steps; needs a verifier."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.model is None) == (self.init is None):
            raise ValueError("set exactly one of student.model (its weights) and student.init (random weights)")
        return self


class EvaluationConfig(Section):
    """Held-out problems that teacher and student are measured on."""

    source: str | None = None
    """Problems in the form of ``prompts.source``, with the same columns, each with an answer."""
    addition: AdditionConfig | None = None
    """Draw held-out addition problems instead; they occur in no training prompt."""
    limit: PositiveInt | None = None
    """Take only this many problems."""
    verifier: VerifierName = VerifierName.EXACT_ANSWER
    """How an answer is judged."""
    teacher: str | None = None
    """Which of several ``teachers`` is measured; unset takes the first."""
    max_tokens: PositiveInt = 1024
    """Longest answer (tokens); decoding is greedy."""
    batch_size: PositiveInt = 64
    """Problems decoded at a time by the student."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.source is None) == (self.addition is None):
            raise ValueError("set exactly one of evaluation.source and evaluation.addition")
        return self


class ClusterConfig(Section):
    """The Ray cluster the run uses. None of it decides the data."""

    address: str | None = None
    """Address of a running cluster, or ``auto``; unset starts an embedded one on this machine and ends it after."""
    num_cpus: PositiveInt | None = None
    """Logical CPUs of the embedded cluster; unset takes the machine's."""
    object_store_mib: Annotated[int, Field(ge=80)] = 256
    """Object store of the embedded cluster (MiB)."""
    phases: Phases = Phases.IN_TURN
    """``in_turn`` gives the whole cluster to the teacher and then to the student; ``overlapped`` has the student learn
    from rows as they are committed, while the teacher writes the others. Its first pass has them in the order of the
    commits, which makes it another student of the same rows."""
    teacher_labels: Labels = Field(default_factory=dict)
    """Labels of the nodes that replicas may take while phases overlap; set together with ``student_labels``. Unset
    shares all nodes."""
    student_labels: Labels = Field(default_factory=dict)
    """Labels of the nodes that the student may take beside the teacher; once that has ended it may take all, where
    ``training.num_workers`` is a pair."""
    max_gpus: Annotated[int, Field(ge=0)] | None = None
    """GPUs that the cluster has, or may grow to; a run that needs more is refused before anything is started. Unset
    looks at what the cluster tells when it is joined: all that it has, where it cannot grow."""
    prices: str | None = None
    """File with prices and speeds of accelerators, in the form of ``configs/prices.yaml``, which is taken where this is
    unset and has examples only."""


class BudgetConfig(Section):
    """What a run may cost, over all its commands. Looked at while the teacher writes and the student trains."""

    max_usd: PositiveFloat | None = None
    """Stop when so much is spent, at the prices of ``cluster.prices`` for all that the cluster has (US dollars)."""
    max_hours: PositiveFloat | None = None
    """Stop when the run has had a cluster for so long (hours)."""


class DeadlinesConfig(Section):
    """How long each wait may take; each says what it waited for when it gives up (seconds)."""

    replica_start: PositiveFloat = 1800.0
    """Until the first teacher replica is ready: download, weights, warm-up."""
    request: PositiveFloat = 600.0
    """How long the teacher may send nothing at all, or one call may take once its turn has come, before it is asked
    again: more than the longest answer takes. So long may a replica that is scaled away finish its calls."""
    no_progress: PositiveFloat = 1800.0
    """Without a row from the teacher, or a finished shard, before generation gives up."""
    commit: PositiveFloat = 120.0
    """Until a shard is committed."""
    hand_over: PositiveFloat = 180.0
    """Until the teacher's resources are free again."""
    worker_start: PositiveFloat = 1800.0
    """Until all training workers are placed and running, at the start and after nodes were lost."""
    shutdown: PositiveFloat = 30.0
    """Until what was started has ended."""


class RunConfig(Section):
    """Everything a run needs to know, as one recipe file says it."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    """Name of the run, used for its directory, its Serve application and its Ray jobs."""
    run_dir: str | None = None
    """Directory of the run, any fsspec URI; unset means ``runs/<name>`` under the project's root."""
    teacher: TeacherConfig | None = None
    """The model that writes the completions; exactly one of ``teacher`` and ``teachers`` is set."""
    teachers: dict[TeacherName, TeacherConfig] = Field(default_factory=dict)
    """Several teachers by name, each with replicas of its own and the keys of ``teacher`` but ``make``;
    ``prompts.teacher_column`` says which of them answers a row."""
    prompts: PromptsConfig
    """Where prompts come from."""
    sampling: SamplingConfig = SamplingConfig()
    """How the teacher writes."""
    acceptance: AcceptanceConfig = AcceptanceConfig()
    """Which completions the student may learn from."""
    generation: GenerationConfig = GenerationConfig()
    """How rows are streamed through the teacher."""
    student: StudentConfig
    """The model that learns."""
    training: TrainingConfig = TrainingConfig()
    """How it is trained."""
    evaluation: EvaluationConfig | None = None
    """Held-out problems; unset skips the measurement of answers."""
    gateway: GatewayConfig | None = None
    """Who outside the job may ask the teacher of ``stillhouse serve``, and how much; unset serves it on loopback
    without keys."""
    terms: TermsConfig = TermsConfig()
    """Licences of what the student is made from, and who makes it what for."""
    cluster: ClusterConfig = ClusterConfig()
    """The Ray cluster the run uses."""
    budget: BudgetConfig = BudgetConfig()
    """What a run may cost."""
    deadlines: DeadlinesConfig = DeadlinesConfig()
    """How long each wait may take."""

    @property
    def pool(self) -> dict[str, TeacherConfig]:
        """Every teacher by name; the one of the section ``teacher`` has that name."""
        return {ONLY_TEACHER: self.teacher} if self.teacher is not None else self.teachers

    def teacher_key(self, name: str) -> str:
        """The section of a teacher: ``teacher``, or ``teachers.<name>`` where there are several."""
        return f"teachers.{name}" if self.teachers else "teacher"

    @property
    def watermarks(self) -> dict[str, WatermarkConfig]:
        """The marks of those teachers that have one, by name."""
        return {name: each.watermark for name, each in self.pool.items() if each.watermark is not None}

    @property
    def main_teacher(self) -> str:
        """Name of the teacher that is measured, and whose tokenizer a student from random weights takes."""
        chosen = self.evaluation.teacher if self.evaluation is not None else None
        return chosen or next(iter(self.pool))

    @model_validator(mode="after")
    def _check_teachers(self) -> Self:
        if (self.teacher is None) == (not self.teachers):
            raise ValueError("set exactly one of teacher (one teacher) and teachers (several by name)")
        named = {
            "prompts.default_teacher": self.prompts.default_teacher,
            "evaluation.teacher": self.evaluation.teacher if self.evaluation is not None else None,
        }
        for key, name in named.items():
            if name is not None and name not in self.teachers:
                known = ", ".join(self.teachers) or "none: they are a section teachers"
                raise ValueError(f"{key} ({name}) must be one of the recipe's teachers ({known})")
        if self.teachers and self.prompts.default_teacher is None and self.prompts.teacher_column is None:
            raise ValueError(
                "teachers need prompts.teacher_column, which says which of them answers a row, or "
                "prompts.default_teacher, which answers all"
            )
        if self.teachers and self.prompts.addition is not None and self.prompts.default_teacher is None:
            raise ValueError("prompts.addition names no teachers; set prompts.default_teacher to the one that answers")
        if self.prompts.teacher_column is not None and not self.teachers:
            raise ValueError("prompts.teacher_column needs teachers, by the names that the column has")
        made = [name for name, teacher in self.teachers.items() if teacher.make is not None]
        if made:
            raise ValueError(f"teachers.{made[0]}.make: only the section teacher can be made; give teachers a model")
        if self.teachers and self.terms.teacher != SourceTerms():
            raise ValueError("terms.teacher is for the section teacher; say it of each under terms.teachers.<name>")
        if strange := sorted(self.terms.teachers.keys() - self.teachers.keys()):
            known = ", ".join(self.teachers) or "none; for one teacher it is terms.teacher"
            raise ValueError(f"terms.teachers.{strange[0]} must be one of the recipe's teachers ({known})")
        return self

    @property
    def is_overlapped(self) -> bool:
        """Whether the student learns while the teacher writes."""
        return self.cluster.phases is Phases.OVERLAPPED

    @model_validator(mode="after")
    def _check_overlapped(self) -> Self:
        cluster = self.cluster
        if not self.is_overlapped:
            if cluster.teacher_labels or cluster.student_labels:
                raise ValueError(
                    "cluster.teacher_labels and cluster.student_labels split the cluster for overlapped phases; set "
                    "cluster.phases=overlapped, or leave them out"
                )
            return self
        if bool(cluster.teacher_labels) != bool(cluster.student_labels):
            raise ValueError(
                "set both cluster.teacher_labels and cluster.student_labels, or neither: one side alone would take the "
                "nodes of the other"
            )
        refused = {
            "student.control=false, as that student learns from sealed rows": self.student.control,
            "training.max_steps, which the learning rate follows before all rows are there": (
                self.training.max_steps is None
            ),
            "student.transfer=token_ids, as rows are not tokenised anew on their way": (
                self.student.transfer is TransferMode.TEXT
            ),
            "training.objective.ground_truth_share=0, as such rows are made from sealed ones": (
                self.training.objective.ground_truth_share > 0
            ),
        }
        for wanted, is_missing in refused.items():
            if is_missing:
                raise ValueError(f"cluster.phases=overlapped needs {wanted}; set that, or cluster.phases=in_turn")
        return self

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.student.control and self.acceptance.verifier is VerifierName.NONE:
            raise ValueError("student.control needs acceptance.verifier, which tells the final answer of a completion")
        if self.student.control and self.training.max_steps is None:
            raise ValueError("student.control needs training.max_steps, the budget that both students are given")
        if self.training.objective.kl_weight and not self.sampling.top_logprobs:
            raise ValueError(
                "training.objective.kl_weight needs the teacher's log-probabilities; set sampling.top_logprobs, 8 say"
            )
        shard_size, workers = self.training.shard_size, self.training.num_workers
        if shard_size is not None and (not isinstance(workers, int) or workers % shard_size):
            raise ValueError(
                f"training.shard_size ({shard_size}) must divide training.num_workers, one number and not {workers}"
            )
        size = self.training.tensor_parallel_size
        if self.training.min_workers % size or self.training.max_workers % size:
            raise ValueError(
                f"training.tensor_parallel_size ({size}) must divide training.num_workers, both numbers of a pair, and "
                f"not {workers}; set num_workers to multiples of it"
            )
        if size > 1 and self.student.lora is not None:
            raise ValueError(
                f"training.tensor_parallel_size ({size}) must be 1 with student.lora, whose adapters are not cut; give "
                "the student more workers instead"
            )
        for name, teacher in self.pool.items():
            key = self.teacher_key(name)
            limit = teacher.engine.max_model_len
            if limit is not None and self.sampling.max_tokens >= limit:
                raise ValueError(
                    f"sampling.max_tokens ({self.sampling.max_tokens}) must be less than {key}.engine.max_model_len "
                    f"({limit}), which holds the prompt as well"
                )
            if teacher.watermark is not None:
                self._check_watermark(key, teacher.watermark)
        return self

    def _check_watermark(self, key: str, watermark: WatermarkConfig) -> None:
        if self.sampling.temperature == 0:
            raise ValueError(
                f"{key}.watermark marks tokens as they are drawn, and sampling.temperature is 0, which draws none; "
                "raise it, or unset the watermark"
            )
        if watermark.kind is WatermarkKind.GUMBEL and self.sampling.n > watermark.channels:
            raise ValueError(
                f"sampling.n ({self.sampling.n}) must not exceed {key}.watermark.channels ({watermark.channels}), or "
                f"samples of a prompt would become alike; set {key}.watermark.channels={self.sampling.n}"
            )
