"""Recipe -> run directory, stage by stage: what is finished is skipped, what changed is made anew.

The only place that joins the rooms below; knows nothing about terminals (a Progress is handed in).
"""
