"""Variables of the environment: those of launchers and compilers, and places that are none."""

import shutil

from tests.hostile.case import hostile, photo


@hostile(0, "active rows", env={"WORLD_SIZE": "", "RANK": "", "LOCAL_RANK": "", "MASTER_PORT": ""})
def variables_of_a_launcher_that_are_empty(directory):
    return ["--dry-run"]


@hostile(2, "WORLD_SIZE", env={"WORLD_SIZE": "two"})
def a_number_of_processes_in_words(directory): ...


@hostile(2, "WORLD_SIZE", env={"WORLD_SIZE": "0"})
def no_process_at_all(directory): ...


@hostile(2, "RANK", env={"RANK": "5"})
def a_rank_that_does_not_exist(directory): ...


@hostile(2, "LOCAL_RANK", env={"LOCAL_RANK": "x"})
def a_local_rank_in_words(directory): ...


@hostile(0, "report", env={"CXX": "", "CUDA_HOME": "", "PIC_KERNELS_CACHE": "", "OMP_NUM_THREADS": ""})
def variables_of_compilers_that_are_empty(directory): ...


@hostile(0, "report", env={"PIC_KERNELS_CACHE": "/dev/null"})
def a_cache_of_kernels_that_is_no_directory(directory): ...


@hostile(0, "report", encoding="ascii")
def a_file_name_that_the_terminal_cannot_show(directory):
    shutil.move(photo(directory) and directory / "photos" / "dogs" / "00.jpg", directory / "photos" / "dogs" / "é.jpg")
    (directory / "photos" / "cats" / "01.jpg").write_text("<html>é</html>")
    (directory / "photos" / "dogs" / "é.jpg").write_text("<html>é</html>")
    return ["data.labels=folders", "steps=6"]


@hostile(0, "report", env={"TMPDIR": "{directory}/" + "x" * 90})
def a_temporary_directory_of_90_characters(directory):
    (directory / ("x" * 90)).mkdir()
    return ["data.workers=2"]


@hostile(0, "report", env={"TMPDIR": "/dev/null/nowhere", "HOME": "/dev/null/nowhere"})
def no_temporary_directory_and_no_home(directory):
    return ["data.workers=1"]
