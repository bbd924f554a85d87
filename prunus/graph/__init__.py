"""A traced model: its axes, and what every operation says about them.

Its files, in the order in which to read them:

    axes          the algebra of dimensions: axes, sums and products of them, unified
    reshaping     the layouts of a tensor in another shape
    operators     what operators are: families, each named once, and arguments by name
    op            the record of one operation
    rules/        one small function per operator, which says how layouts pass through it
    modules       the modules of a model, listed quickly
    names         their dotted names
    packing       packed models: the module inside, and what is refused
    copying       deep copies of models, and what cannot be copied
    turns         one trace or proof at a time
    skeleton      copies of models without data, and how to run them
    outputs       the tensors that a model returns
    calls         the calls of modules in a pass
    experts       how the experts of mixtures are computed
    tracer        one forward pass, observed operator by operator
    sizes         integers that remember what they are made of
    symbols       these integers on their way through torch
    attributes    integers that a model keeps
    state         tensors that a model keeps between calls
    origins       the functions that a forward pass calls, watched
    solve         which integers follow which layouts
    check         the check of a trace at other widths
    passes        the passes of all modes
    making        a model made again from what it keeps
    allocations   the sizes with which a constructor makes its parameters
    construction  sizes that a model states and never reads
    fields        integers of what a model is made from
    configs       a config tried at other sizes
    ties          axes that shrink together
    tying         the search for what a config can say
    parametrised  weights behind steps: what lies behind, how it is cut and set
    flow          where tensors come from
    attention     attention, in one operator or in several
    kinds         the kinds of axes: heads, mlp, width and others
    demands       what operators ask of widths
    words         layouts and lists in words
    blocks        the modules that can be skipped
    skippable     those of a graph, by the names of their axes
    graph         Graph: members, widths, explain
    tracing       trace a model, or a part of it
    resizing      the graph of a small model, from its original's
    places        the places of the units that stay
    draws         random numbers, the same for two models
    levels        signals that neither fade nor grow, in a network on random weights
    stand_ins     parameters whose numbers are made when they are read
    reference     a run at full size that computes what the small model does
"""

from prunus.graph.attributes import Attribute, Integers, get_integer, set_attributes, set_integer, slots
from prunus.graph.axes import Axis, Layout
from prunus.graph.blocks import SUFFIX, Block
from prunus.graph.calls import Argument, given_argument
from prunus.graph.configs import difference_of_made
from prunus.graph.construction import Stated, stated_sizes
from prunus.graph.copying import copy_model
from prunus.graph.draws import SameDraws
from prunus.graph.fields import integers, members
from prunus.graph.graph import Graph, Member
from prunus.graph.kinds import KINDS
from prunus.graph.levels import Levels
from prunus.graph.making import Maker, Path
from prunus.graph.modules import evaluation_mode, is_torchs
from prunus.graph.names import full_name, holder, lies_in
from prunus.graph.op import (
    CONSUMES,
    DIRECTION,
    PRODUCES,
    SCALES,
    SHIFTS,
    Op,
    Tag,
    Untracked,
    is_inexact,
    tensors_in,
)
from prunus.graph.outputs import Outputs, output_tensors, quiet_config, select_outputs
from prunus.graph.packing import plain_model, unwrap, whole_tensors
from prunus.graph.parametrised import OwnStep, read_tensor, tensors_behind
from prunus.graph.places import Keep, Places, Where, set_zero, take
from prunus.graph.reference import Reference
from prunus.graph.resizing import resized
from prunus.graph.rules import rule
from prunus.graph.skeleton import OWN_NAMES, make_skeleton, named_tensors, quiet_forward, seeded
from prunus.graph.stand_ins import StandIns, WrittenError
from prunus.graph.state import kept_tensors, set_kept
from prunus.graph.tracer import Storage, operators_of
from prunus.graph.tracing import part, trace
from prunus.graph.turns import one_at_a_time

__all__ = [
    "CONSUMES",
    "DIRECTION",
    "KINDS",
    "OWN_NAMES",
    "PRODUCES",
    "SCALES",
    "SHIFTS",
    "SUFFIX",
    "Argument",
    "Attribute",
    "Axis",
    "Block",
    "Graph",
    "Integers",
    "Keep",
    "Layout",
    "Levels",
    "Maker",
    "Member",
    "Op",
    "Outputs",
    "OwnStep",
    "Path",
    "Places",
    "Reference",
    "SameDraws",
    "StandIns",
    "Stated",
    "Storage",
    "Tag",
    "Untracked",
    "Where",
    "WrittenError",
    "copy_model",
    "difference_of_made",
    "evaluation_mode",
    "full_name",
    "get_integer",
    "given_argument",
    "holder",
    "integers",
    "is_inexact",
    "is_torchs",
    "kept_tensors",
    "lies_in",
    "make_skeleton",
    "members",
    "named_tensors",
    "one_at_a_time",
    "operators_of",
    "output_tensors",
    "part",
    "plain_model",
    "quiet_config",
    "quiet_forward",
    "read_tensor",
    "resized",
    "rule",
    "seeded",
    "select_outputs",
    "set_attributes",
    "set_integer",
    "set_kept",
    "set_zero",
    "slots",
    "stated_sizes",
    "take",
    "tensors_behind",
    "tensors_in",
    "trace",
    "unwrap",
    "whole_tensors",
]
