# Sourced by every run.sh, behind the defaults: --some-name VALUE sets some_name, which has to be among them.
while (($#)); do
  name=${1#--}; name=${name//-/_}
  if [[ $1 != --* || ! -v $name || $# -lt 2 ]]; then echo "run.sh: unknown or incomplete option $1" >&2; exit 2; fi
  printf -v "$name" %s "$2"; shift 2
done
