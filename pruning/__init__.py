"""Channel pruning: a torch network in, a smaller torch network out.

Example:
    groups = find_groups(model, example)
    ranking = CRITERIA.build("fpgm").rank(model, groups)
    prune(model, {"layer1.0.conv1": 8}, ranking, groups=groups, example_input=example)
"""

from pruning.allocation import ALLOCATIONS, Allocation
from pruning.allocation.budget import at_least, project
from pruning.allocation.ladder import Measure
from pruning.auxiliary import AuxiliaryLosses
from pruning.batchnorm import recalibrate
from pruning.blocks import block_names
from pruning.checkpoint import (
    PRUNED_FILES,
    PrunedNetwork,
    hash_weights,
    load_pruned,
    load_weights,
    save_pruned,
    save_weights,
    set_weights,
)
from pruning.cost import Cost, CostModel, Memory, count_cost, count_memory
from pruning.criteria import CRITERIA, Criterion, StreamingCriterion, rank_together
from pruning.criteria.sensitivity import Sensitivity
from pruning.curves import Curve, SensitivityRanking
from pruning.cutting import remove
from pruning.data import DATA, ImageData, ImageSplit, load_data
from pruning.data.pictures import intensities, read_picture
from pruning.errors import (
    CheckpointError,
    DataError,
    ExportError,
    GraphError,
    ModelError,
    PolicyError,
    PruningError,
    RankingError,
    UnknownNameError,
    in_one_line,
)
from pruning.export import EXPORT_FORMATS, Agreement, Exported, compare_outputs, export_network, load_exported
from pruning.finding import find_groups
from pruning.finetune import Epoch, Evaluation, TrainingError, evaluate, fine_tune
from pruning.greedy import GreedyRanking
from pruning.groups import ChannelGroup, ChannelGroups
from pruning.initialise import draw_weights
from pruning.latency import Latency, compare_latency, measure_latency
from pruning.latency_model import LatencyModel, measure_widths, predict_left_out
from pruning.layout import Layout, layout_of
from pruning.limits import MALFORMED, parse_json, read_bytes
from pruning.memory import BatchSizeWarning, DeviceMemoryError, is_out_of_memory, told_briefly
from pruning.methods.dcp_schedules import Selector, joint_schedule, stagewise_schedule
from pruning.mixed_ranking import MixedRanking
from pruning.models import build_model, check_trusted, input_shape, model_names, paper_groups, timm_names
from pruning.path_ranking import PathRanking
from pruning.placement import even_positions
from pruning.policy import AuxiliaryPlacement, CriterionSpec, ModelSpec, Policy, Recipe, explain, load_policy
from pruning.ranking import NestedRanking, QuadraticRanking, Ranking, load_ranking
from pruning.refitting import ReconstructionRanking
from pruning.sensitivity import measure_sensitivity
from pruning.stagewise import train_heads
from pruning.streaming import Reading, Request, observe
from pruning.surgery import Kept, prune
from pruning.transfer import Transferred, thinned_counterparts, transfer_policy

__all__ = [
    "ALLOCATIONS",
    "Agreement",
    "Allocation",
    "AuxiliaryLosses",
    "AuxiliaryPlacement",
    "BatchSizeWarning",
    "CRITERIA",
    "ChannelGroup",
    "ChannelGroups",
    "CheckpointError",
    "Cost",
    "CostModel",
    "Criterion",
    "CriterionSpec",
    "Curve",
    "DATA",
    "DataError",
    "DeviceMemoryError",
    "EXPORT_FORMATS",
    "Epoch",
    "Evaluation",
    "ExportError",
    "Exported",
    "GraphError",
    "GreedyRanking",
    "ImageData",
    "ImageSplit",
    "Kept",
    "Latency",
    "LatencyModel",
    "Layout",
    "MALFORMED",
    "Measure",
    "Memory",
    "MixedRanking",
    "ModelError",
    "ModelSpec",
    "NestedRanking",
    "PRUNED_FILES",
    "PathRanking",
    "Policy",
    "PolicyError",
    "PrunedNetwork",
    "PruningError",
    "QuadraticRanking",
    "Ranking",
    "RankingError",
    "Reading",
    "Recipe",
    "ReconstructionRanking",
    "Request",
    "Selector",
    "Sensitivity",
    "SensitivityRanking",
    "StreamingCriterion",
    "TrainingError",
    "Transferred",
    "UnknownNameError",
    "at_least",
    "block_names",
    "build_model",
    "check_trusted",
    "compare_latency",
    "compare_outputs",
    "count_cost",
    "count_memory",
    "draw_weights",
    "evaluate",
    "even_positions",
    "explain",
    "export_network",
    "find_groups",
    "fine_tune",
    "hash_weights",
    "in_one_line",
    "input_shape",
    "intensities",
    "is_out_of_memory",
    "joint_schedule",
    "layout_of",
    "load_data",
    "load_exported",
    "load_policy",
    "load_pruned",
    "load_ranking",
    "load_weights",
    "measure_latency",
    "measure_sensitivity",
    "measure_widths",
    "model_names",
    "observe",
    "parse_json",
    "read_bytes",
    "paper_groups",
    "predict_left_out",
    "project",
    "prune",
    "rank_together",
    "read_picture",
    "recalibrate",
    "remove",
    "save_pruned",
    "save_weights",
    "set_weights",
    "stagewise_schedule",
    "timm_names",
    "thinned_counterparts",
    "told_briefly",
    "train_heads",
    "transfer_policy",
]
