"""The arms of the ablation: their settings, scores, statistics, tables and curves."""
