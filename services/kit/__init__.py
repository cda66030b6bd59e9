"""What makes a process a Qflow service; knows no table and no rule of the business."""
