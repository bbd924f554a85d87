"""A traced model: its axes, and what every operation says about them.

Its files, in the order in which to read them:

    axes          the algebra of dimensions: axes, sums and products of them, unified
    operators     what operators are: families, each named once, and arguments by name
    op            the record of one operation
    rules/        one small function per operator, which says how layouts pass through it
    skeleton      copies of models without data, and how to run them
    tracer        one forward pass, observed operator by operator
    attributes    integers that modules keep, and how they are set
    follow        the search for the integers that must follow an axis
    graph         Graph: members, widths, explain
    tracing       trace a model, or a part of it
    places        the places of the units that stay
    draws         random numbers, the same for two models
    reference     a run at full size that computes what the small model does
"""

from prunus.graph.attributes import set_attributes, slots
from prunus.graph.axes import Axis, Layout
from prunus.graph.draws import SameDraws
from prunus.graph.graph import Graph, Member
from prunus.graph.op import CONSUMES, PRODUCES, SCALES, SHIFTS, Op, Tag, Untracked, tensors_in
from prunus.graph.places import Keep, Places, set_zero, take
from prunus.graph.reference import Reference
from prunus.graph.rules import rule
from prunus.graph.skeleton import call, make_skeleton, named_tensors, quiet_forward
from prunus.graph.tracer import Storage
from prunus.graph.tracing import part, trace

__all__ = [
    "CONSUMES",
    "PRODUCES",
    "SCALES",
    "SHIFTS",
    "Axis",
    "Graph",
    "Keep",
    "Layout",
    "Member",
    "Op",
    "Places",
    "Reference",
    "SameDraws",
    "Storage",
    "Tag",
    "Untracked",
    "call",
    "make_skeleton",
    "named_tensors",
    "part",
    "quiet_forward",
    "rule",
    "set_attributes",
    "set_zero",
    "slots",
    "take",
    "tensors_in",
    "trace",
]
