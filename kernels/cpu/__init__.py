"""Quantization in C++ on the CPU."""
