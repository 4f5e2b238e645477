"""What training sees: sources of captioned clips, and the pipeline that turns them into batches."""
