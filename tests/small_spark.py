"""Settings of a Spark that is small enough for a test."""

# Small and without compilers, which cost more than they save on a few rows; a time zone that may not matter.
SETTINGS = {
    "spark.master": "local[2]", "spark.ui.enabled": "false", "spark.sql.session.timeZone": "Asia/Tokyo",
    "spark.driver.memory": "1g", "spark.driver.extraJavaOptions": "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC",
    "spark.sql.shuffle.partitions": "2", "spark.default.parallelism": "2", "spark.sql.adaptive.enabled": "false",
    "spark.sql.codegen.wholeStage": "false", "spark.sql.codegen.factoryMode": "NO_CODEGEN",
}  # fmt: skip
