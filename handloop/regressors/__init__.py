"""Networks that propose hands from keypoints or pictures; a fit improves what they propose."""
