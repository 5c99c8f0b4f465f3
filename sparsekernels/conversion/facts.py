# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""What `convert` may find: ways to run a model, obstacles and notes, as facts with their sentences."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple


class Way(str, enum.Enum):
    """A way to run a model. The value is the name by which `sparsekernels.testing.prefer` knows it."""

    BEFORE = "as before"
    LAYERS = "layers"
    GRAPH = "graph"
    GRAPH_IN_INPUT_LAYOUT = "graph in the input's layout"
    GRAPH_IN_CHANNELS_LAST = "graph in channels_last"
    CHAINS = "chains"
    CHAINS_OF_ALL = "chains of all layers"

    @property
    def words(self) -> str:
        """As a sentence says it."""
        return _WAYS[self]


_WAYS = {
    Way.BEFORE: "as before",
    Way.LAYERS: "layers one by one",
    Way.GRAPH: "a graph",
    Way.GRAPH_IN_INPUT_LAYOUT: "a graph in the input's layout",
    Way.GRAPH_IN_CHANNELS_LAST: "a graph in channels_last",
    Way.CHAINS: "a graph with chains of layers",
    Way.CHAINS_OF_ALL: "a graph with chains of all layers that can be sparse",
}


class Count(NamedTuple):
    """An operand of a `Fact`.

    Attributes:
        number: How many.
        name: Of what.
    """

    number: int
    name: str

    def __str__(self) -> str:
        return f"{self.number} {self.name}"


@dataclass(frozen=True)
class Fact:
    """Something found, and what it was found of. `str` gives the sentence.

    Attributes:
        kind: Of a `Note`, a `LayerObstacle`, a `CandidateObstacle` or a `GraphObstacle`.
        operands: What stands in the places of its sentence; a tuple is listed.
    """

    kind: _Sentence
    operands: Mapping[str, object]

    def __str__(self) -> str:
        texts = {
            name: ", ".join(map(str, operand)) if isinstance(operand, tuple) else operand
            for name, operand in self.operands.items()
        }
        return self.kind.value.format(**texts)


def plain(value: object) -> object:
    """What JSON has in the place of a fact, or of an operand of one: what JSON does not know is given by its name.

    Args:
        value: A `Fact`, one of its operands, or None.

    Returns:
        A dict, a list, a string, a number or None.
    """
    if isinstance(value, Fact):
        return {"kind": value.kind.name, "operands": {name: plain(one) for name, one in value.operands.items()}}
    if isinstance(value, tuple):
        return [plain(one) for one in value]
    if isinstance(value, enum.Enum):
        return value.value
    return value if isinstance(value, str | float | int | None) else str(value)


class _Sentence(enum.Enum):
    """The value is the sentence, with places for the operands of a `Fact`."""

    def of(self, **operands: object) -> Fact:
        """The fact with these operands."""
        return Fact(self, operands)


class LayerObstacle(_Sentence):
    """Why a layer stays as it is, and is not even measured."""

    SCRIPTED = "it is a scripted module"
    WITHIN_SCRIPTED = "it is part of a scripted module"
    FAST_PATH = (
        "torch's TransformerEncoderLayer multiplies by its weight itself, in eval mode;"
        " torch.backends.mha.set_fastpath_enabled(False) before convert makes it call the layer"
    )
    OUT_PROJ = "it is the out_proj of a MultiheadAttention, which multiplies by its weight and never calls it"
    PARAMETRIZED = "its weight is parametrized; torch.nn.utils.parametrize.remove_parametrizations makes it permanent"
    PARAMETRIZED_OTHERS = "it has parametrizations, of {names}"
    FAKE_SPARSITY = (
        "its mask is a parametrization; the sparsifier's squash_mask(), or sparsekernels.pruning.finalize(model), makes"
        " it permanent"
    )
    WEIGHT_NORM = "its weight is normalized in each call; torch.nn.utils.remove_weight_norm(layer) makes it permanent"
    SPECTRAL_NORM = "its weight is normalized in each call; torch.nn.utils.remove_spectral_norm(layer) ends that"
    MASKED = (
        "its mask is applied in each call; torch.nn.utils.prune.remove(layer, '{name}'), or"
        " sparsekernels.pruning.finalize(model), makes it permanent"
    )
    MASKED_BY_MODELOPT = (
        "its mask is ModelOpt's, applied in each call; modelopt.torch.sparsity.export(model), or"
        " sparsekernels.pruning.finalize(model), makes it permanent"
    )
    MASKED_BY_NNCF = (
        "NNCF applies its mask in each call, its weight has few zeros or none; sparsekernels.pruning.finalize(model),"
        " or nncf.strip(model, ..., strip_format=nncf.StripFormat.IN_PLACE), writes them"
    )
    MASK_BESIDE = (
        "it has a buffer {name}_mask that something else applies, as cerebras-pytorch does;"
        " sparsekernels.pruning.finalize(model) writes its zeros and takes it away"
    )
    QUANTIZED = "its class {kind} has a quantized weight, for which there is no sparse kernel"
    OWN_VALUES = "its class {kind} has no weight, but values in a sparse format of its own"
    CONVERTED = "it is a {kind} already; where convert made it, revert what was converted"
    SUBCLASS = "its class {kind} may compute something else than torch.nn.{base}"
    HOOKS = "it has hooks, which what replaces it would not have"
    FORWARD_REPLACED = "its forward was replaced"
    COMPILED = "it is compiled by itself"
    GIVEN_MORE = "it was given parameters, buffers or modules beside its own, which what replaces it would not have"
    WHOLE_MODEL = "it is the whole model; use sparsekernels.nn's from_dense on it"
    SEVERAL_PLACES = "the layer occurs in several places: {places}"
    NO_PARAMETER = "its {which} is a {kind}, not a torch.nn.Parameter"
    SHARED = "its weight is shared with {layers}"
    DTYPE = "its weight is of {dtype}"
    LAYOUT = "its weight is stored as {layout}; torch.nn.Parameter(weight.to_dense()) makes it one for these kernels"
    DEVICE = "there are no sparse kernels for {device} yet"
    FLOAT64 = "the kernels compute in float32, its weight is float64"
    NO_ELEMENTS = "its weight has no elements"
    NOT_FINITE = "its weight has NaN or infinite elements"
    NO_ZEROS = "it has no zeros"
    FEW_ZEROS = "too few zeros: with less than {least:.0%} a layer is not measured"
    CLASS_COMPARED = "{where} tells {kind} from its subclasses, and what replaces it is one"
    NOT_CALLED = "the model did not call it with this input (calls in compiled code are not seen)"
    LEFT_OUT = "chance left it out: the model draws random numbers, and did not call it in {passes} passes"


class CandidateObstacle(_Sentence):
    """Why a layer cannot become one of the candidates."""

    FEW_ZEROS = "less than {least:.0%} of its weights are zero"
    ALL_ZERO = "all of its weights are zero"
    NO_EMPTY_CHANNELS = "none of its filters and input channels is all zero"
    GROUPS = "it has {groups} groups"
    CHANNELS_OF_KIND = "there is no {kind} without its empty channels"
    NO_BLOCK_KERNEL = "for {dtype} weights in blocks there are no kernels on {device}"
    NO_BLOCKS = "its nonzeros lie in no blocks of {blocks}"
    PACKED_OF_KIND = "there is no packed {kind}"
    PACKED_ON_DEVICE = "packed weights have kernels on CPUs alone, its weight is on {device}"
    SAME_AS_BLOCK = "its blocks, few zeros among them, run on the same kernels"


class GraphObstacle(_Sentence):
    """Why a module does not run as a graph."""

    FORWARD_REPLACED = "its forward was replaced"
    FORWARD_OF_NNCF = "NNCF replaced its forward; sparsekernels.pruning.finalize(model) ends that"
    FORWARD_NO_METHOD = "its forward is no ordinary method"
    METACLASS = "its class has the metaclass {metaclass}, which may do anything with the class that a graph would need"
    COMPARES_CLASSES = (
        "{where} tells classes apart by identity, as `type(self) is {kind}` does, and a module that runs as a graph has"
        " a class of its own; with isinstance or == it would be one"
    )
    OTHER_ARGUMENTS = "it is called with a number, an object or tensors of several kinds, for which no graph is made"
    TENSOR_SUBCLASS = "it is called with a {kind}, which may compute otherwise; as_subclass(torch.Tensor) is plain"
    NOT_CALLED = "it is not called as a whole"
    NO_FLOATING_TENSOR = "neither it nor the model is called with a floating tensor"
    SURROUNDINGS = "a part of it runs under torch.no_grad, autocast, a checkpoint or the like{place}"
    TOO_MUCH = "its attributes hold more than can be looked at in each call"
    DECIDES = "its forward decides by what tensors hold, or by more of them than sizes and dtype{place}"
    ASKS_THE_CLASS = (
        "its forward asks for the class of a tensor or a size, as `type(x) is Tensor` and `match` do{place}; with"
        " isinstance it would be one"
    )
    RETURNS_ITS_OWN = "it returns a list or dict that it was given or keeps, to which its caller may write"
    RETURNS_MORE = "it returns a {kind} that holds something else than it would be made of"
    TRACING_FAILED = "torch.fx cannot trace it ({error}){place}"
    AUTOGRAD_FUNCTION = "its forward calls {function}, a torch.autograd.Function, which is given tensors alone{place}"
    PLANNING_FAILED = "no graph can be made of it ({error})"
    SIDE_EFFECTS = "its forward changes attributes or globals, or makes tensors of its own{place}"
    WRITES_TO_LAYERS = "its forward writes to parameters or buffers of layers that it calls"
    SPEAKS = "its forward prints, logs or writes to a file{place}"
    TELLS_TIME = "its forward reads a clock, or asks the system for random numbers{place}"
    RANDOM = "its forward draws random numbers, which would be the same in each call{place}"
    TENSOR_BY_DEFAULT = "its argument {argument} is a tensor by default"
    MODE = "it is in {mode} mode"
    NO_MODULE = "it reads {target}, which is no module's"
    MAKES_TENSORS = "its forward makes tensors of its own, which might be others in each call{place}"
    NOTHING_TO_FUSE = "there is nothing to fuse"
    RANGE = "a weight or bias with a BatchNorm folded into it would leave the range of float16"
    NO_STATISTICS = "a BatchNorm of it has no running statistics, or does not count its batches"
    PARAMETERS = "the parameters of a layer of it, or of the BatchNorm behind it, are not such that they can be folded"
    INFERENCE_TENSORS = "its parameters are inference tensors, whose changes cannot be seen"


class Note(_Sentence):
    """What else there is to know of a conversion."""

    OTHER_LAYERS = "Layers of other kinds stay as they are: {kinds}."
    TRAINING_MODE = "Converted in training mode: for inference, call model.eval() and convert again."
    NO_GRADIENT = "No result of the model has a gradient: only forward passes count."
    DISTURBED = (
        "Timing was noisy: other programs preempted the process {per_second:.0f} times a second, so these times are"
        " disturbed."
    )
    UNDECIDED = (
        "{count} of {total} layers are undecided and stay as they are: other programs disturbed their measurement."
        " Convert again when the machine is quiet."
    )
    MODEL_UNDECIDED = (
        "Whether the whole model is faster {how} is undecided: other programs disturbed the measurement. Convert again"
        " when the machine is quiet."
    )
    LIMIT = (
        "The limit max_seconds={seconds:g} was reached, so less was measured than otherwise. Not measured:"
        " {unmeasured}."
    )
    CHANNELS_LAST = (
        "Whatever the zeros, torch is {gain:.2f} times as fast at layer {layer} in channels_last: try"
        " model.to(memory_format=torch.channels_last), the images likewise, and convert then."
    )
    NOTHING_FASTER = "No faster configuration was found."
    NOTHING_PREFERRED = "Every layer stays dense under sparsekernels.testing.prefer."
    AUTOCAST = "Under autocast no graph serves: layers run one by one."
    NO_GRAPH = "The model as a whole does not run as a graph: {reason}."
    NO_GRAPH_OF_PART = "{part} does not run as a graph: {reason}."
    NO_GRAPH_OF_PARTS = "{count} parts of class {kind} ({part} for one) do not run as graphs: {reason}."
    OTHER_RESULTS = "Running as {way.words} was rejected: its results differed from the original model's{by}."
    OTHER_GRADIENTS = "{layer} stays dense: as {decision}, the gradient of {of} differed from the original layer's."
    LAYER_RAISED = "{layer} stays dense: as {decision}, its backward pass raised {error}."
    RAISED = "Running as {way.words} was rejected: it raised {error}."
    NOT_RUN = "Running as {way.words} was rejected: the modules run when it is called with the example."
    MODEL_NOT_FASTER = "The whole model was not reliably faster {how}."
    SLOWER_IN_EXAMPLE = "Running as {way.words} would be faster on the whole, but {gain:.2f}x with {example}."
    NO_PREFERRED_WAY = "No way to run the model that sparsekernels.testing.prefer names is possible."
    NO_WAY_NAMED = "sparsekernels.testing.prefer names no way to run the model, such as 'layers' or 'graph'."
    GRAPH_NOT_FASTER = "As a graph, the model was no faster: its layers run one by one."
    FREED = (
        "{count} layers keep no dense weight: {dense:.3g} MB became {packed:.3g} MB. They refuse training; revert gives"
        " the dense weights back."
    )
    CHAINS = "Sparse layers that follow each other run as one call, a few images on each thread."
    FUSED = "Fused for calls in evaluation mode without gradients: use torch.inference_mode() or torch.no_grad()."
    FUSED_IN_TRAINING = "In training mode, BatchNorm and what stands behind it are one step: {behind}."
    NORM_IN_TRAINING = "In training mode, BatchNorm has kernels of its own."
    DROPOUT_IN_TRAINING = "Fused dropout draws other random numbers than torch's from the same seed."
    POOLING_IN_TRAINING = "In training mode, max pooling has a kernel of its own."
    NO_LAYERS = "The model has no Conv2d, no Conv1d and no Linear."
    NOT_PRUNED = (
        "The model is not pruned, or its channels are gone already: no layer has as much as {least:.0%} zeros among its"
        " weights. Prune it first, with torch.nn.utils.prune for instance."
    )
    MASKS_OF_NNCF = (
        "NNCF keeps masks beside the weights, which have no zeros for that: {masks}. Call"
        " sparsekernels.pruning.finalize(model), or nncf.strip(model, ..., strip_format=nncf.StripFormat.IN_PLACE),"
        " then convert."
    )
    MASKS_OF_TOOLS = (
        "Masks of a pruning tool are not permanent yet, in {count} of {total} layers: call"
        " sparsekernels.pruning.finalize(model), or the tool's own last step, then convert."
    )
    ZEROS_ELSEWHERE = "Zeros in weights of other kinds, for which there is no sparse kernel: {weights}."
    ZERO_SCALES = (
        "Scales of zero, whose channels are the same everywhere: {norms}. In evaluation mode, a graph leaves out such"
        " channels where convolutions and linear layers alone read them."
    )
    NORMS = "RMSNorms run as sparsekernels.rms_norm, {gain:.2f}x as fast: {kinds}."
    NORMS_PREFERRED = "RMSNorms run as sparsekernels.rms_norm, as sparsekernels.testing.prefer decides: {kinds}."
    NORMS_NOT_FASTER = "RMSNorms stay as they are, as sparsekernels.rms_norm they would be {gain:.2f}x{where}: {kinds}."
    NORMS_UNDECIDED = (
        "RMSNorms are undecided and stay as they are, since other programs disturbed their measurement: {kinds}."
        " Convert again when the machine is quiet."
    )
    NORMS_ALONE = (
        "RMSNorms stay as they are with the whole model; alone, as sparsekernels.rms_norm they would be {gain:.2f}x:"
        " {kinds}."
    )
    NORMS_STAY = "RMSNorms stay as they are ({kinds}): {reason}."
    NORMS_OTHER_RESULTS = (
        "RMSNorms stay as they are ({kinds}): as sparsekernels.rms_norm, the model's results differed from the original"
        " model's{by}."
    )
    NORMS_RAISED = "RMSNorms stay as they are ({kinds}): as sparsekernels.rms_norm, the model raised {error}."
    NORMS_BESIDE = "sparsekernels.replace_norms(model) lets RMSNorms run as sparsekernels.rms_norm: {kinds}."
    CONVERTED_BEFORE = (
        "{count} of {total} layers were converted before, with a part of the model, and stay as they are:"
        " sparsekernels.revert(model) first lets them be measured with the rest."
    )
    NO_DATA = "The model's weights have no data (they are on device meta): load them first, then convert."
    WRITTEN = (
        "The model's code writes to parameters by other means than torch's operators, or in its backward pass, and what"
        " one call wrote stays: {names}."
    )
    NO_LAYER_FITS = "No layer that has zeros can be exchanged."
