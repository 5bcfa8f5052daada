#include "app/app.h"

int main(int argc, char** argv) { return m2::app::run(argc, argv); }
