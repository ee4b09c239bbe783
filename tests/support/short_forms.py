"""The forms of tests that the default run takes: of a test with many parameters, those that differ
most. The others run with -m slow; on a GPU all forms of kernels always run."""

from fnmatch import fnmatchcase

SHORT: dict[str, tuple[str, ...]] = {
    "benchmarks/test_ablation.py::test_each_arm_changes_what_it_names_and_nothing_else": ("",),
    "checkpoint/test_select.py::test_stop_request_between_micro_batches_changes_no_bit": (
        "1-3-5",
        "2-2-3",
    ),
    "benchmarks/test_gpu_script.py::test_step_exits_with_all_results_in_the_archive": ("train",),
    "commands/data/test_pack.py::test_a_signal_leaves_what_the_same_command_continues": (
        "SIGKILL",
    ),
    "commands/runs/test_train.py::test_stopped_run_resumes_bit_for_bit": ("5",),
    "commands/test_recipes.py::test_what_is_shown_is_the_file_of_the_recipe": (
        "deit",
        "digits",
        "transfer",
    ),
    "config/test_flags.py::test_printed_command_makes_the_settings": (
        "*-deit",
        "*-digits",
        "*-transfer",
    ),
    "data/augment/test_native.py::test_branches_that_no_layer_has_may_be_missing": (
        "cpu-rand_augment",
        "as_gpu-three_augment",
    ),
    "data/augment/test_native.py::test_operation_equals_pils": (
        "cpu-*-41x57",
        "as_gpu-*Shear*-41x57",
    ),
    "data/device/test_augment.py::test_kernels_equal_the_compiled_operator": ("copies",),
    "data/formats/cifar/test_train.py::test_a_teacher_and_its_student": ("exact",),
    "data/graphs/test_generated.py::test_the_folder_is_gone_when_the_process_ends": ("a rank's",),
    "data/graphs/test_pipeline.py::test_dali_accepts_the_graph_of_a_gpu": (
        "rand_augment-*",
        "three_augment-mixed",
        "one_colour-cpu",
    ),
    "data/graphs/test_pipeline.py::test_replay_over_batch_sizes_and_threads": (
        "exact-*",
        "native-16-2",
    ),
    "data/test_quarantine.py::test_bad_image_is_replaced_by_the_next_on_any_world_size": (
        "truncate",
        "to_text",
        "unlink",
    ),
    "export/test_forms.py::test_a_full_disk_leaves_nothing_of_an_export": ("x", "x.pt2"),
    "export/test_program.py::test_half_precision_and_both_heads": ("bf16",),
    "inference/test_evaluate.py::test_scores_equal_timms_to_the_last_digit": (
        "test_resnet-*0.875*",
        "test_resnet-*border*",
        "test_vit-*squash*",
        "test_vit-*lanczos*",
    ),
    "kernels/test_attention.py::test_attention_equals_the_formula": (
        "N198-D64",
        "N1",
        "N17-D32",
        "N65-D96",
        "N257-D64",
    ),
    "kernels/test_attention.py::test_attention_equals_the_formula_with_16_bit_launches": (
        "N198-D64",
        "N1",
        "N65-D96",
        "N129-D128",
        "N256-D32",
    ),
    "kernels/test_attention.py::test_attention_error_is_at_most_twice_that_of_torch": (
        "N198-D64-bf16",
        "N17-D32-*",
        "N65-D96-fp16",
        "N257-D64-bf16",
    ),
    "kernels/test_attention.py::test_attention_of_an_image_ignores_other_images": ("N17", "N70"),
    "kernels/test_attention.py::test_other_forms_equal_the_formula": (
        "*-N198-D64",
        "*-N197-D48",
        "resident-pair-N150-D32",
    ),
    "kernels/test_augment.py::test_augment_passes_opcheck": ("deit",),
    "kernels/test_augment.py::test_kernel_equals_timm": (
        "Equalize",
        "ShearX",
        "SharpnessIncreasing",
        "GaussianBlur",
    ),
    "kernels/test_augment.py::test_planned_chains_equal_timm": ("deit",),
    "kernels/test_distill.py::test_distill_compiles_without_a_graph_break": (
        "*-none-1",
        "*-soft-1",
    ),
    "kernels/test_distill.py::test_distill_is_deterministic_and_keeps_its_inputs": (
        "*-hard-1",
        "*-soft-1",
    ),
    "kernels/test_distill.py::test_distill_passes_opcheck": (
        "none-2-triton",
        "hard-ids-triton",
        "soft-1-triton",
    ),
    "kernels/test_distill.py::test_kernel_error_is_at_most_twice_that_of_the_reference": (
        "2-*-bf16-*",
        "7-*-fp32-*",
        "*-soft-1-fp16-*",
    ),
    "kernels/test_distill.py::test_kernel_handles_many_classes": (
        "1001-*",
        "21841-soft-1-triton",
    ),
    "kernels/test_distill.py::test_kernel_sums_more_rows_than_one_block_holds": ("none-2-*",),
    "kernels/test_gelu.py::test_gelu_passes_opcheck": ("bias",),
    "kernels/test_mix_pixels.py::test_mix_of_pixels_equals_mix_of_normalised_images": (
        "nchw-rand",
        "nhwc-pixel",
        "nhwc-const",
    ),
    "kernels/test_mix_pixels.py::test_patches_of_pixels_equal_patches_of_normalised_images": (
        "7-torch.bfloat16",
        "8-torch.float32",
    ),
    "kernels/test_mlp.py::test_frozen_weights_save_and_compute_nothing_for_themselves": (
        "*-(True, True, True, *)",
        "*-(False, False, *, True)",
    ),
    "kernels/test_mlp.py::test_mlp_equals_the_reference_in_float64": ("*-fp32", "*-bf16"),
    "kernels/test_norm.py::test_add_norm_passes_opcheck": ("plain", "all"),
    "kernels/test_norm.py::test_one_program_processes_several_blocks_of_rows": ("ragged",),
    "kernels/test_normalise.py::test_normalise_has_the_bits_of_the_cpu": (
        "B6-33-rand",
        "B5-wide-pixel",
        "B3-tall-const",
        "B2-1-*",
    ),
    "kernels/test_resize.py::test_no_value_of_odd_crops_differs_from_pil_and_the_exact_backend": (
        "resize_reference-*",
    ),
    "models/test_deit3.py::test_shallow_models_give_timms_logits": (
        "deit3_small_*",
        "deit3_medium_*",
        "deit3_base_patch16_384",
    ),
    "models/test_student.py::test_other_sizes_equal_timm": ("deit_small_*",),
    "plan/test_digest.py::test_a_run_stopped_and_continued_in_another_form_is_the_same_run": (
        "at an epoch's end and in mid-epoch",
    ),
    "plan/test_statistics.py::test_colour_jitter_has_torchvisions_distribution": ("0.3",),
    "plan/test_statistics.py::test_mixing_has_timms_distribution": ("224", "cutmix", "switch"),
    "plan/test_statistics.py::test_rand_augment_has_timms_distribution": ("rand-m9-*", "rand-m7-*"),
    "reliability/test_health.py::test_infinite_loss_with_a_finite_gradient_skips_the_step": (
        "fp32 1",
        "bf16 2",
        "bf16 3",
    ),
    "teacher_cache/test_check.py::test_damage_found_in_mid_run_ends_the_run": ("truncated",),
    "teacher_cache/test_check.py::test_live_teacher_replaces_damaged_records_exactly": (
        "flipped",
        "hole",
    ),
    "teacher_cache/test_check.py::test_run_stopped_in_mid_epoch_resumes_from_the_cache": (
        "live-cached",
    ),
    "teacher_cache/test_record.py::test_recording_cut_within_a_write_restarts_to_the_same_bytes": (
        "0-False",
        "1-True",
        "22-True",
    ),
    "test_imagenet_page.py::test_each_source_ends_with_a_data_set": ("Kaggle*", "*Parquet files"),
    "test_security.py::test_image_exchanged_during_a_run_is_not_decoded": (
        "bomb-native",
        "jpeg that lies-exact",
        "larger-exact",
    ),
    "training/optim/test_lamb.py::test_one_process_gives_the_weights_of_timms_lamb": (
        "0-1",
        "1-4",
        "3-4",
    ),
    "training/test_evaluation.py::test_heads_of_timms_models_are_evaluated_apart": (
        "deit_tiny_*",
        "efficientformer_l1",
        "efficientvim_*",
        "levit_*",
        "pit_*",
        "swiftformer_xs",
    ),
    "training/test_compiled.py::test_steps_are_those_without_a_compiler_and_compile_once": (
        "make_timms-2",
    ),
    "training/test_step_counts.py::test_step_stays_under_its_ceiling": (
        "fp32-1-None-1",
        "bf16-2-1.0-1",
        "bf16-3-None-2",
    ),
    "training/test_timm_students.py::test_steps_equal_a_plain_loop": (
        "one head-soft-2",
        "two heads-hard-1",
        "two heads-soft-3",
    ),
    "training/zero/test_partitions.py::test_one_process_gives_the_losses_of_plain_torch": (
        "0-4",
        "1-1",
        "2-4",
        "3-1",
    ),
}
"""What the default run takes, by the path in tests/ and name of a test: patterns of the ids of its
parameters."""


def is_short(name: str) -> bool:
    """Return whether the default run takes a form of a test; name: its path in tests/, `::`, its
    name and, in brackets, its parameters."""
    test, _, parameters = name.partition("[")
    patterns = SHORT.get(test)
    return patterns is None or any(fnmatchcase(parameters[:-1], each) for each in patterns)
