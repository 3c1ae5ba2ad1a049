"""The DINOv2 training objective and the loop that adapts or trains a backbone on unlabelled images.

Read in this order, which is the paper's: crops, masks, heads, losses, student_teacher, objective, step, schedules, optim, loop.
"""
