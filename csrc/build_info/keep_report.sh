# Runs nvcc (the arguments) and keeps what ptxas says about each kernel beside the object file; all else is passed on.
for word; do
  case $word in *.cu.o) report=$word.ptxas ;; esac
done
"$@" 2>"$report"
status=$?
grep -v -e '^ptxas info' -e 'bytes stack frame' "$report" >&2
exit $status
