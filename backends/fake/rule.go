package fake

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/moraine-storage/moraine/plugins/errdefs"
)

// Action is what a rule does to a call.
type Action string

// The actions.
const (
	Fail    Action = "fail"    // Unavailable
	IO      Action = "io"      // DataLoss
	Full    Action = "full"    // ResourceExhausted
	Hang    Action = "hang"    // until the call's context ends
	Ignore  Action = "ignore"  // hang for ever, whatever the context says
	Exit    Action = "exit"    // end the process at once, as a crash does
	Maybe   Action = "maybe"   // Unavailable and indeterminate
	Unknown Action = "unknown" // an error without a class
)

// Rule makes one call go wrong.
type Rule struct {
	Call   string // info, schema, configure, discover, get, list, create, delete, attach, detach, expand, fence, health; * = any
	Action Action
	Times  int // how often, from the next call on; 0 = always
}

func (r Rule) String() string {
	s := r.Call + ":" + string(r.Action)
	if r.Times > 0 {
		s += ":" + strconv.Itoa(r.Times)
	}
	return s
}

// ParseRule reads what String writes: CALL:ACTION or CALL:ACTION:TIMES.
func ParseRule(s string) (Rule, error) {
	bad := fmt.Errorf("rule: %w: want CALL:ACTION or CALL:ACTION:TIMES", errdefs.ErrInvalidArgument)
	parts := strings.Split(s, ":")
	if len(parts) < 2 || len(parts) > 3 || parts[0] == "" {
		return Rule{}, bad
	}
	r := Rule{Call: parts[0], Action: Action(parts[1])}
	switch r.Action {
	case Fail, IO, Full, Hang, Ignore, Exit, Maybe, Unknown:
	default:
		return Rule{}, bad
	}
	if len(parts) == 3 {
		n, err := strconv.Atoi(parts[2])
		if err != nil || n < 1 {
			return Rule{}, bad
		}
		r.Times = n
	}
	return r, nil
}

// Script replaces the rules. The first one that fits a call is played.
func (b *Backend) Script(rules ...Rule) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.rules = nil
	for _, r := range rules {
		b.rules = append(b.rules, &r)
	}
}

// next takes one use of the first rule for call; "" when there is none.
func (b *Backend) next(call string) Action {
	b.mu.Lock()
	defer b.mu.Unlock()
	for i, r := range b.rules {
		if r.Call != call && r.Call != "*" {
			continue
		}
		a := r.Action
		if r.Times > 0 {
			if r.Times--; r.Times == 0 {
				b.rules = append(b.rules[:i:i], b.rules[i+1:]...)
			}
		}
		return a
	}
	return ""
}

func (b *Backend) play(ctx context.Context, call string) error {
	switch a := b.next(call); a {
	case "":
		return nil
	case Hang:
		<-ctx.Done()
		return fmt.Errorf("%s: %w: scripted to hang: %w", call, errdefs.ErrUnavailable, ctx.Err())
	case Ignore:
		select {}
	case Exit:
		os.Exit(3)
	case IO:
		return fmt.Errorf("%s: %w: scripted", call, errdefs.ErrDataLoss)
	case Full:
		return fmt.Errorf("%s: %w: scripted", call, errdefs.ErrResourceExhausted)
	case Maybe:
		return fmt.Errorf("%s: %w: %w: scripted", call, errdefs.ErrUnavailable, errdefs.ErrIndeterminate)
	case Unknown:
		return fmt.Errorf("%s: scripted", call)
	}
	return fmt.Errorf("%s: %w: scripted", call, errdefs.ErrUnavailable)
}
