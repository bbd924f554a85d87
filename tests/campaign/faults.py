"""Faults that would make results worse or wrong without an error, and the test that has to notice each.

A fault is a change of one place in the source. guard.py makes each in a copy of the package and runs its test there,
which must fail; without a fault it must pass.
"""

from typing import NamedTuple


class Fault(NamedTuple):
    """A change of the source.

    Args:
        name: What the changed package does.
        file: The file, below prunus/.
        old: Text that occurs there once.
        new: The text in its place.
        test: The test that notices it, as pytest names it; a quick one, because a fault is made for each run of it.
    """

    name: str
    file: str
    old: str
    new: str
    test: str


FAULTS = (
    Fault(
        "keep the worst units",
        "selection/choose.py",
        "score[units].sort(descending=True, stable=True)",
        "score[units].sort(descending=False, stable=True)",
        "tests/selection/test_selection.py::test_the_same_as_a_plain_greedy_loop",
    ),
    Fault(
        "exceed the budget by 2 %",
        "selection/budget.py",
        "return self.value * before",
        "return 1.02 * self.value * before",
        "tests/selection/test_selection.py::test_a_budget_is_a_share_or_an_amount",
    ),
    Fault(
        "leave a part of the budget unused",
        "selection/budget.py",
        "return self.value * before",
        "return 0.95 * self.value * before",
        "tests/selection/test_selection.py::test_a_budget_is_a_share_or_an_amount",
    ),
    Fault(
        "take an input less the branch for the input of a block",
        "graph/blocks.py",
        'once = "sub" not in op.name and op.argument("alpha", 1) == 1',
        'once = op.argument("alpha", 1) == 1',
        "tests/graph/test_blocks.py::test_no_path_where_the_input_is_changed_on_the_way",
    ),
    Fault(
        "price blocks that are skipped",
        "selection/depth.py",
        "return tuple(each.axis for each in self.blocks if each.start <= number < each.stop)",
        "return ()",
        "tests/selection/test_depth.py::test_costs_are_those_of_the_model_without_the_blocks",
    ),
    Fault(
        "number the layers that stay from one too high",
        "surgery/shortening.py",
        "setattr(module, key, stays.index(name) + start)",
        "setattr(module, key, stays.index(name) + start + 1)",
        "tests/surgery/test_depth.py::test_the_numbers_of_links_follow_in_a_shorter_list",
    ),
    Fault(
        "prove that any module can be skipped",
        "surgery/bypass.py",
        "if not same:",
        "if not same and skip.branch:",
        "tests/surgery/test_depth.py::test_the_proof_finds_a_module_that_is_no_block",
    ),
    Fault(
        "score a block by all that it returns",
        "scores/blocks.py",
        "return own if block.branch else own - self.inputs[axis]",
        "return own",
        "tests/scores/test_blocks.py::test_taylor_is_the_squared_slope_of_a_gate_on_a_block",
    ),
    Fault(
        "leave one index out",
        "graph/places.py",
        "axes.positions(layout, self.keep).to(device)",
        "axes.positions(layout, self.keep)[:-1].to(device)",
        "tests/surgery/test_three_ways.py::test_whole_it_is_the_network_that_was_given",
    ),
    Fault(
        "cut the next units",
        "graph/places.py",
        "axes.positions(layout, self.keep).to(device)",
        "((axes.positions(layout, self.keep) + 1) % axes.size(layout)).to(device)",
        "tests/surgery/test_three_ways.py::test_cut_masked_and_made_small_answer_alike",
    ),
    Fault(
        "let every proof hold",
        "surgery/proof.py",
        "return self.max_abs_error <= self.tolerance",
        "return True",
        "tests/surgery/test_proof.py::test_a_failed_proof_names_the_axis_and_leaves_the_model_alone",
    ),
    Fault(
        "prove without comparing weights",
        "surgery/proof.py",
        "        pair.check_weights()",
        "        pass",
        "tests/surgery/test_proof.py::test_rows_in_another_order_are_noticed",
    ),
    Fault(
        "score by the square of the norm",
        "scores/weights.py",
        "_normalize(power ** (1 / p), normalize)",
        "_normalize(power, normalize)",
        "tests/scores/test_scores.py::test_magnitude",
    ),
    Fault(
        "renew no norms",
        "recover/finetune.py",
        "    renew_norms(small, calibration_batches(task.data.train, seed))\n",
        "",
        "tests/recover/test_recover.py::test_recovery_starts_from_renewed_norms",
    ),
    Fault(
        "renew norms by the last batch alone",
        "recover/norms.py",
        "pooled[norm] = pool(pooled.get(norm), ",
        "pooled[norm] = pool(None, ",
        "tests/recover/test_recover.py::test_statistics_are_those_of_all_batches_together",
    ),
    Fault(
        "teach from an untrained network",
        "run/stages.py",
        "            teacher=self.base_model(),",
        "            teacher=self.fresh_model(),",
        "tests/run/test_run.py::test_the_stored_base_teaches",
    ),
    Fault(
        "teach nothing",
        "train/loop.py",
        "torch.lerp(loss, distilled, recipe.distill_weight)",
        "torch.lerp(loss, distilled, 0.0)",
        "tests/train/test_train.py::test_teacher_is_left_as_it_was_and_changes_the_result",
    ),
    Fault(
        "learn the images that choices are made on",
        "train/loop.py",
        "train, steps = task.data.train, task.data.train.steps",
        "train, steps = task.data.val, task.data.val.steps",
        "tests/train/test_train.py::test_every_epoch_shows_the_same_examples_in_another_order",
    ),
    Fault(
        "augment nothing",
        "train/loop.py",
        '"augment": True',
        '"augment": False',
        "tests/train/test_train.py::test_one_step_is_torchs_own",
    ),
    Fault(
        "show every epoch in the same order",
        "train/loop.py",
        '"epoch": at.epoch, "start"',
        '"epoch": 0, "start"',
        "tests/train/test_train.py::test_every_epoch_shows_the_same_examples_in_another_order",
    ),
    Fault(
        "test on the images that choices are made on",
        "run/stages.py",
        "split = self.task.data.judged",
        "split = self.task.data.val",
        "tests/run/test_run.py::test_base_and_result_are_judged_on_the_test_set",
    ),
    Fault(
        "report the original's metric as the small one's",
        "run/stages.py",
        '"test": self.test(small),\n            "before"',
        '"test": self.test(base),\n            "before"',
        "tests/run/test_run.py::test_base_and_result_are_judged_on_the_test_set",
    ),
    Fault(
        "hold out by content what is trained on",
        "data/split.py",
        "return np.flatnonzero(~held), np.flatnonzero(held)",
        "return np.arange(len(labels)), np.flatnonzero(held)",
        "tests/data/test_data.py::test_digits_are_split_into_disjoint_balanced_parts",
    ),
    Fault(
        "hold out by position what is trained on",
        "data/split.py",
        "return np.setdiff1d(np.arange(len(labels)), held), held",
        "return np.arange(len(labels)), held",
        "tests/data/test_data.py::test_val_keeps_one_image_of_a_rare_class",
    ),
    Fault(
        "count every multiplication twice",
        "selection/cost.py",
        'return int(of(graph, "macs", graph.widths(keep)))',
        'return 2 * int(of(graph, "macs", graph.widths(keep)))',
        "tests/selection/test_cost.py::test_macs_and_params_equal_what_the_shrunk_module_does",
    ),
    Fault(
        "choose by negated scores",
        "selection/choose.py",
        "score = scores[name].detach()",
        "score = -scores[name].detach()",
        "tests/run/test_quality.py::test_units_that_matter_stay",
    ),
    Fault(
        "recover without renewed norms",
        "recover/finetune.py",
        "    renew_norms(small, calibration_batches(task.data.train, seed))\n",
        "",
        "tests/run/test_quality.py::test_renewed_norms_bring_most_of_a_cut_network_back",
    ),
    Fault(
        "repair norms alone",
        "refit/in_order.py",
        "Places(keep), sites, layers, ridge)",
        "Places(keep), sites, False, ridge)",
        "tests/run/test_quality.py::test_repair_brings_a_network_back_without_training",
    ),
    Fault(
        "warm up for the whole of a short training",
        "train/recipe.py",
        "share = min(1.0, epochs / self.epochs) if self.epochs else 1.0",
        "share = 1.0",
        "tests/run/test_quality.py::test_a_training_of_two_epochs_learns_and_does_not_end_in_its_warm_up",
    ),
    Fault(
        "learn from an untrained base",
        "run/stages.py",
        "            teacher=self.base_model(),",
        "            teacher=self.fresh_model(),",
        "tests/run/test_quality.py::test_the_smaller_network_learns_from_a_base_that_knows",
    ),
    Fault(
        "begin another epoch after a fraction of one",
        "train/loop.py",
        "return batches if left >= steps - at.batch else islice(batches, left)",
        "return batches",
        "tests/train/test_recipe.py::test_a_training_takes_as_many_steps_as_its_epochs_say",
    ),
    Fault(
        "train a search as the task advises, whatever is asked",
        "tasks/_contract.py",
        ".adapt(**advice).adapt(**self.search_fields)",
        ".adapt(**advice)",
        "tests/run/test_recipe.py::test_a_search_is_trained_as_was_asked",
    ),
    Fault(
        "load weights into the user's own model",
        "run/prepare.py",
        "task = task.on(copy.deepcopy(task.model))",
        "task = task.on(task.model)",
        "tests/run/test_untouched.py::test_weights_are_what_is_pruned",
    ),
    Fault(
        "give a search its epochs in addition to those of recovery",
        "methods/_contract.py",
        "return epochs - searched",
        "return epochs",
        "tests/run/test_compare.py::test_search_and_recovery_together_have_the_epochs_that_were_asked",
    ),
    Fault(
        "compare with the first method's best seed",
        "run/standing.py",
        "value - first[seed]",
        "value - max(first.values())",
        "tests/run/test_compare.py::test_differences_are_to_the_first_method_with_the_same_seed_where_both_are_finished",
    ),
    Fault(
        "quantise weights to ranges whose sums saturate",
        "export/quantised.py",
        "reduce_range=True",
        "reduce_range=False",
        "tests/export/test_int8.py::test_sums_of_products_do_not_saturate",
    ),
)
