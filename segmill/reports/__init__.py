"""Every HTML page: one environment, one style, one figure helper; filled with plain values by the rooms above."""
