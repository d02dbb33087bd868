"""Schedules that TVM lacks, and what they need of the loops before and after: blocks, threads, tensor cores, copies."""
