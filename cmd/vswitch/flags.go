package main

import (
	"errors"
	"regexp"
	"strings"

	"github.com/spf13/cobra"
)

// What the flag package says of a value that is of no use are the words of those who
// parse it; these say what would be right. Flags of our own types say so themselves.
var wants = []struct {
	says *regexp.Regexp
	want string
}{
	{regexp.MustCompile(`strconv\.ParseUint: .*: invalid syntax$`), "want a whole number, 0 or more"},
	{regexp.MustCompile(`strconv\.ParseInt: .*: invalid syntax$`), "want a whole number"},
	{regexp.MustCompile(`strconv\.Parse\w*: .*: value out of range$`), "want a smaller number"},
	{regexp.MustCompile(`strconv\.ParseBool: .*: invalid syntax$`), "want true or false"},
	{regexp.MustCompile(`time: .* duration .*$`), "want a time such as 30s or 2m"},
}

// flagError is a mistake in a command line.
func flagError(_ *cobra.Command, err error) error {
	text := err.Error()
	for _, w := range wants {
		if at := w.says.FindStringIndex(text); at != nil {
			return errors.New(strings.TrimRight(text[:at[0]], " ") + " " + w.want)
		}
	}
	return err
}
