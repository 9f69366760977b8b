"""Evaluation of generated clips: metrics, suites, statistics, reports. Never imported by avgen."""
