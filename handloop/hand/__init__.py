"""Hand models: MANO files, the embedded hand, joints-only kinematics, meshes."""
