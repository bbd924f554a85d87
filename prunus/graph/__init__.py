"""A traced model: its axes, and what every operation says about them.

Its files, in the order in which to read them:

    axes          the algebra of dimensions: axes, sums and products of them, unified
    reshaping     the layouts of a tensor in another shape
    operators     what operators are: families, each named once, and arguments by name
    op            the record of one operation
    rules/        one small function per operator, which says how layouts pass through it
    modules       the modules of a model, listed quickly
    packing       packed models: the module inside, and what is refused
    copying       deep copies of models, and what cannot be copied
    turns         one trace or proof at a time
    skeleton      copies of models without data, and how to run them
    outputs       the tensors that a model returns
    tracer        one forward pass, observed operator by operator
    sizes         integers that remember what they are made of
    symbols       these integers on their way through torch
    attributes    integers that a model keeps
    state         tensors that a model keeps between calls
    origins       the functions that a forward pass calls, watched
    solve         which integers follow which layouts
    check         the check of a trace at other widths
    passes        the passes of all modes
    construction  sizes that a model states and never reads
    parametrised  weights behind steps: what lies behind, how it is cut and set
    graph         Graph: members, widths, explain
    tracing       trace a model, or a part of it
    places        the places of the units that stay
    draws         random numbers, the same for two models
    levels        signals that neither fade nor grow, in a network on random weights
    reference     a run at full size that computes what the small model does
"""

from prunus.graph.attributes import Attribute, Integers, get_integer, set_attributes, set_integer, slots
from prunus.graph.axes import Axis, Layout
from prunus.graph.construction import Stated, stated_sizes
from prunus.graph.copying import copy_model
from prunus.graph.draws import SameDraws
from prunus.graph.graph import Graph, Member
from prunus.graph.levels import Levels
from prunus.graph.modules import evaluation_mode
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
from prunus.graph.places import Keep, Places, set_zero, take
from prunus.graph.reference import Reference
from prunus.graph.rules import rule
from prunus.graph.skeleton import make_skeleton, named_tensors, quiet_forward
from prunus.graph.state import kept_tensors, set_kept
from prunus.graph.tracer import Storage
from prunus.graph.tracing import part, trace
from prunus.graph.turns import one_at_a_time

__all__ = [
    "CONSUMES",
    "DIRECTION",
    "PRODUCES",
    "SCALES",
    "SHIFTS",
    "Attribute",
    "Axis",
    "Graph",
    "Integers",
    "Keep",
    "Layout",
    "Levels",
    "Member",
    "Op",
    "Outputs",
    "OwnStep",
    "Places",
    "Reference",
    "SameDraws",
    "Stated",
    "Storage",
    "Tag",
    "Untracked",
    "copy_model",
    "evaluation_mode",
    "get_integer",
    "is_inexact",
    "kept_tensors",
    "make_skeleton",
    "named_tensors",
    "one_at_a_time",
    "output_tensors",
    "part",
    "plain_model",
    "quiet_config",
    "quiet_forward",
    "read_tensor",
    "rule",
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
